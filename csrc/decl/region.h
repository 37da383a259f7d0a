enum page_state { PAGE_SHARED, PAGE_PRIVATE, ... };
enum memory_mechanism {
	MECHANISM_PROT_NONE, MECHANISM_SLOTS, MECHANISM_ATTRIBUTES, MECHANISM_PRESENCE, ...
};

struct region {
	uint64_t private_gpa;
	uint64_t shared_gpa;
	uint64_t pages;
	int private_fd;
	int shared_fd;
	void *private_host;
	void *shared_host;
	uint32_t slot_base;
	uint32_t slot_count;
	uint32_t mechanism;
	bool keep_contents;
	uint8_t *states;
	struct slot_window private_window;
	struct slot_window shared_window;
	struct slot_window private_nothing;
	struct slot_window shared_nothing;
	uint64_t to_private;
	uint64_t to_shared;
	uint64_t implicit;
	uint64_t explicit_;
	uint64_t spurious;
	uint64_t busy;
	uint64_t busy_page;
	int32_t lost;
	...;
};
