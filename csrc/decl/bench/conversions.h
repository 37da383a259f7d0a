enum bare_call {
	BARE_ALLOCATE, BARE_PUNCH, BARE_PROTECT, BARE_ADD_SLOT, BARE_DELETE_SLOT,
	BARE_ATTRIBUTES, BARE_FILE_ATTRIBUTES, BARE_ADD_CLOSED_SLOT, ...
};
enum bare_timing { BARE_UNTIMED, BARE_TIME_WHOLE, BARE_TIME_PARTS, ... };
enum bare_part {
	BARE_PART_ALLOCATE, BARE_PART_ATTRIBUTES, BARE_PART_SWITCH, BARE_PART_DISCARD, BARE_PARTS,
	...
};

struct bare_step {
	uint32_t call;
	uint32_t part;
	int fd;
	int guest_memfd;
	int protection;
	uint32_t slot;
	uint64_t gpa;
	uint64_t offset;
	uint64_t size;
	uint64_t attributes;
	void *host;
};

struct bare_direction {
	uint64_t gpa;
	uint64_t size;
	void *host;
	const struct bare_step *steps;
	uint64_t step_count;
	struct record_clock clock;
	uint64_t conversions;
	uint64_t whole_ns;
	uint64_t parts_ns[...];
};

int bare_conversions(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
		     struct bare_direction *to_shared, uint64_t conversions,
		     enum bare_timing timing);
int bare_convert_pairs(struct bare_direction *to_private, struct bare_direction *to_shared,
		       uint64_t pairs, enum bare_timing timing);
int memory_convert_pairs(struct memory *memory, uint64_t gpa, uint64_t pages, uint64_t pairs,
			 uint64_t *private_ns, uint64_t *shared_ns,
			 struct histogram *to_private, struct histogram *to_shared);
int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard);
