struct slot_window {
	uint32_t slot_base;
	uint32_t *slot_of_page;
	...;
};
