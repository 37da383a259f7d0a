enum exit_conversion { CONVERSION_NONE, CONVERSION_TO_SHARED, CONVERSION_TO_PRIVATE, ... };

struct histogram {
	uint64_t count;
	uint64_t sum;
	uint64_t min;
	uint64_t max;
	uint64_t buckets[...];
	...;
};

struct exit_record {
	uint64_t time_in;
	uint64_t time_out;
	uint64_t address;
	uint32_t reason;
	uint32_t size;
	uint8_t is_write;
	uint8_t conversion;
	uint64_t conversion_ns;
	...;
};

struct exit_log {
	struct exit_record *records;
	uint64_t capacity;
	uint64_t written;
	uint64_t drained;
	...;
};

struct exit_split {
	uint64_t count;
	uint64_t handling_ns;
	uint64_t conversion_ns;
	uint64_t outside_ns;
};

void exit_log_split(const struct exit_log *log, uint64_t first, int conversion, uint64_t parts,
		    struct exit_split *split, struct histogram *latency);

void histogram_clear(struct histogram *histogram);
uint64_t histogram_bucket_floor(uint32_t bucket);
void histogram_record(struct histogram *histogram, uint64_t value);
uint64_t histogram_percentile(const struct histogram *histogram, double fraction);
void histogram_add(struct histogram *into, const struct histogram *from);
