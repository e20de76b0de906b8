/* uffd.h: userfaultfd, thinly. Constants are our own: the headers of the build machine may be older than the kernel. */
#ifndef UM_UFFD_H
#define UM_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UM_UFFD_EVENT_PAGEFAULT 0x12
#define UM_UFFD_FEATURE_MOVE (1ull << 16)
#define UM_FAULT_WRITE 1u
#define UM_FAULT_PROTECT 2u

/* struct uffd_msg of the kernel, for page faults */
struct uffd_msg {
  uint8_t event;
  uint8_t reserved1;
  uint16_t reserved2;
  uint32_t reserved3;
  uint64_t flags;
  uint64_t address;
  uint32_t thread_id;
  uint32_t reserved4;
};

int um_uffd_open(uint32_t mode, uint32_t *used, uint64_t *features); /* descriptor or -errno */
int um_uffd_register(int fd, uintptr_t address, uint64_t length);
int um_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t length, bool protect); /* does not wake */
int um_uffd_move(int fd, int pagemap, uintptr_t to, uintptr_t from, uint64_t length, uint64_t *moved); /* likewise */
int um_uffd_protect(int fd, uintptr_t address, uint64_t length);
int um_uffd_unprotect(int fd, uintptr_t address, uint64_t length); /* wakes */
int um_uffd_wake(int fd, uintptr_t address, uint64_t length);
int um_uffd_read(int fd, struct uffd_msg *messages, int capacity); /* how many, or -errno */
bool um_uffd_present(int pagemap, uintptr_t address);
bool um_uffd_is_huge(int pagemap, uintptr_t address); /* a huge page; also where the kernel does not tell (6.7) */

#endif
