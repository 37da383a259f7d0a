"""The orders of steps that the accounting cases play: all that are possible, and no other."""

from __future__ import annotations

from itertools import product

from pyvmm.validate.kit.orders import Order, Step, World, first_steps, orders

EVERY = [
    order for first in first_steps() for order in orders(4, first, World(), tuple(Step))
]  # as the guest_memfd cases play them


def possible(order: Order) -> bool:
    world: World | None = World()
    for step in order:
        world = world and world.after(step)
    return world is not None


def test_all_possible_orders_of_four_steps_are_there_once() -> None:
    wanted = {each for n in range(1, 5) for each in product(Step, repeat=n) if possible(each)}
    assert len(EVERY) == len(set(EVERY)) == 3294
    assert set(EVERY) == wanted


def test_what_is_closed_is_not_used() -> None:
    of_the_file = {Step.ALLOCATE, Step.ALLOCATE_OVER, Step.PUNCH, Step.CREATE, Step.CLOSE_FILE}
    of_the_vm = {Step.THERE, Step.BACK, Step.DELETE, Step.CREATE, Step.CLOSE_VM}
    for order in EVERY:
        for closing, users in ((Step.CLOSE_FILE, of_the_file), (Step.CLOSE_VM, of_the_vm)):
            if closing in order:
                assert not users & set(order[order.index(closing) + 1 :]), order


def test_pages_are_allocated_over_only_where_some_are_in_use() -> None:
    over = Step.ALLOCATE_OVER
    assert (Step.ALLOCATE, over) in EVERY
    assert (Step.THERE, Step.WRITE, over, Step.PUNCH) in EVERY
    assert (Step.ALLOCATE, Step.PUNCH, over) not in EVERY


def test_a_conversion_by_the_file_needs_no_vm() -> None:
    world = World(converted_by_file=True)
    every = set(orders(2, Step.CLOSE_VM, world, tuple(Step)))
    assert (Step.CLOSE_VM, Step.THERE) in every
    assert (Step.CLOSE_VM, Step.THERE) not in EVERY
    assert (Step.CLOSE_FILE, Step.THERE) not in set(orders(2, Step.CLOSE_FILE, world, tuple(Step)))
