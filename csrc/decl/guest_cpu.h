int guest_cpu_choose(int cpu);
