enum memory_policy { POLICY_CONVERT, POLICY_DENY, POLICY_ASK, ... };
#define MEMORY_MAX_REGIONS ...

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
