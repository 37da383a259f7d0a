int page_range_allocate(int fd, uint64_t offset, uint64_t size);
int page_range_punch(int fd, uint64_t offset, uint64_t size);
