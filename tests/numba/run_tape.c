/* Runs a tape on emulated ARM: run_tape IMAGE BASE THREADS.

   IMAGE is a file of memory, mapped at the address BASE, to which all addresses in it refer. It begins with the
   arguments of the kernel `tape`, of which the last, a function that yields the core, is set here. What the kernels
   write is in the file in the end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

extern void tape(int64_t arguments, int64_t thread, int64_t threads);

static int64_t *image, threads;

static void *run(void *thread) {
    tape((int64_t)image, (int64_t)thread, threads);
    return NULL;
}

int main(int count, char **arguments) {
    struct stat file;
    int descriptor = open(arguments[1], O_RDWR);
    void *base = (void *)strtoll(arguments[2], NULL, 10);
    threads = strtoll(arguments[3], NULL, 10);
    if (count != 4 || descriptor < 0 || fstat(descriptor, &file) != 0)
        return 2;
    image = mmap(base, file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, descriptor, 0);
    if (image != base) {
        perror("mmap");
        return 2;
    }
    image[3] = (int64_t)sched_yield;
    pthread_t others[threads];
    for (int64_t thread = 1; thread < threads; thread++)
        if (pthread_create(&others[thread], NULL, run, (void *)thread) != 0)
            return 2;
    run(0);
    for (int64_t thread = 1; thread < threads; thread++)
        pthread_join(others[thread], NULL);
    return 0;
}
