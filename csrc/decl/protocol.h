#define PORT_CONSOLE ...
#define PORT_EXIT ...
#define PORT_DOORBELL_GPA ...
#define PORT_DOORBELL_PAGES ...
#define PORT_DOORBELL_RING ...
#define PORT_DOORBELL_RESULT ...
#define PORT_ASSERT ...
#define PORT_MEASURE ...
#define PORT_FEATURES ...
#define PORT_DOORBELL_GPA_HIGH ...
#define PORT_DOORBELL_PAGES_HIGH ...
#define PORT_ASSERT_HIGH ...
#define FEATURE_HYPERCALL ...
#define FEATURE_TWO_VIEWS ...
#define FEATURE_KEEPS_CONTENTS ...
#define CONSOLE_SIZE ...
#define MEASURES_SIZE ...
#define PYTHON_WINDOWS ...
#define UNCLAIMED_GPAS ...

struct gpa_window {
	uint64_t gpa;
	uint64_t size;
	...;
};

struct unclaimed {
	uint64_t address;
	uint64_t count;
};

struct protocol_buffers {
	char console[...];
	uint32_t measures[...];
	...;
};

struct protocol {
	uint32_t features;
	bool enabled;
	bool is_foreign;
	bool is_wide;
	bool unclaimed_to_python;
	uint32_t python_window_count;
	uint64_t vector_stubs;
	uint64_t console_written;
	uint64_t measures_written;
	struct gpa_window python_windows[...];
	uint8_t python_ports[...];
	struct protocol_buffers *buffers;
	...;
};

struct protocol_vcpu {
	uint32_t exit_code;
	uint64_t assert_gpa;
	bool by_stub;
	...;
};

struct protocol *protocol_create(void);
void protocol_destroy(struct protocol *protocol);
bool protocol_has_unclaimed(const struct protocol *protocol);
uint32_t protocol_unclaimed_ports(const struct protocol *protocol, struct unclaimed *most,
				  uint32_t room, uint64_t *total);
uint32_t protocol_unclaimed_gpas(const struct protocol *protocol, struct unclaimed *first,
				 uint32_t room, uint64_t *total);
