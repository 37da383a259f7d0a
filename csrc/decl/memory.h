enum page_state { PAGE_SHARED, PAGE_PRIVATE, ... };
enum memory_policy { POLICY_CONVERT, POLICY_DENY, POLICY_ASK, ... };
enum memory_mechanism {
	MECHANISM_PROT_NONE, MECHANISM_SLOTS, MECHANISM_ATTRIBUTES, MECHANISM_PRESENCE, ...
};
#define MEMORY_MAX_REGIONS ...

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
	uint8_t *states;
	struct slot_window private_window;
	struct slot_window shared_window;
	uint64_t to_private;
	uint64_t to_shared;
	uint64_t implicit;
	uint64_t explicit_;
	uint64_t spurious;
	...;
};

struct memory {
	uint32_t policy;
	uint32_t region_count;
	uint64_t generation;
	struct region regions[...];
	...;
};

struct memory_access {
	uint64_t gpa;
	uint32_t size;
	bool is_write;
	bool is_fetch;
	bool is_frame;
	...;
};

struct memory_exit {
	struct memory_access access;
	enum page_state wanted;
	uint64_t converted;
	uint64_t conversion_ns;
	int error;
	...;
};

int memory_init(struct memory *memory, int vm_fd, const char *backend, uint32_t policy);
void memory_deinit(struct memory *memory);
void memory_forget_vm(struct memory *memory);
bool memory_peek(const struct memory *memory, uint64_t gpa, void *bytes, uint64_t size);
void memory_add_ram(struct memory *memory, uint64_t gpa, uint64_t size, const void *host);
int memory_add_region(struct memory *memory, const struct region *wanted);
int memory_convert(struct memory *memory, uint64_t gpa, uint64_t pages, uint32_t state,
		   uint64_t *converted);
int memory_copy(struct memory *memory, uint64_t gpa, void *bytes, uint64_t size, bool is_write);
