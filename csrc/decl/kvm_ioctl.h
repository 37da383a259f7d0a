long kvm_ioctl(int fd, unsigned long request, uintptr_t argument);
long kvm_ioctl_on(int fd, unsigned long request, void *argument);
void *host_map(size_t size, int protection, int flags, int fd, int64_t offset);
void *host_map_ram(size_t size, uint64_t gpa);
void host_unmap(size_t size, void *address);
int host_flush(size_t size, void *address);
void name_thread(const char *name);
