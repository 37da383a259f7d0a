struct record_clock {
	bool uses_tsc;
	uint64_t anchor_tsc;
	uint64_t anchor_ns;
	uint64_t anchor_clock_ns;
	uint64_t rate;
	uint64_t lifetime;
	uint64_t latest_tsc;
	...;
};

uint64_t monotonic_ns(void);
void record_clock_init(struct record_clock *clock);
uint64_t record_clock_ns(struct record_clock *clock);
uint64_t record_clock_later_ns(struct record_clock *clock);
