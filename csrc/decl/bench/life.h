enum bare_phase {
	BARE_CREATE, BARE_SLOTS, BARE_VCPU, BARE_FIRST_EXIT, BARE_RESET, BARE_CLOSE, BARE_PHASES,
	...
};

int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool reset,
	      uint64_t *phases_ns);
