/* sort_numbers.c: sorting numbers in memory, for sorts of what does not fit there (umappy/_sort).
 *
 * A radix sort. What is longer than the scratch is parted in place by its highest digit that differs, until it fits;
 * what fits goes by its highest digits back and forth between its memory and the scratch, in the processor's own cache,
 * and the few that have those in common are sorted by the rest. The work is at most linear in the bits, whatever the
 * numbers are. (Knuth, The Art of Computer Programming 3, 5.2.5; parting in place: McIlroy, Bostic, McIlroy,
 * Engineering Radix Sort, 1993.)
 *
 * numpy's sort is as fast by its AVX2 code. By its AVX-512 code, which it takes on AMD's Zen 4, where one instruction
 * of that is slow, it takes five times as long, and no program can choose once numpy is loaded (docs/design.md). */
#include "internal.h"

#define DIGIT_BITS 8u
#define DIGITS (1u << DIGIT_BITS)
#define DIGIT_MASK (DIGITS - 1)
#define FEW 24u
#define SPARE_BITS 6u           /* beyond log2 of the count: one in 64 pairs of neighbours is left to finish */
#define ROOM_BYTES (512u << 10) /* sorted by copying: with the copy they stay in a processor's own cache */

#define SIGN ((number)1 << (8 * sizeof(number) - 1))

#define number uint64_t
#define NAME(x) x##_64
#include "sort_numbers.h"
#undef number
#undef NAME
#define number uint32_t
#define NAME(x) x##_32
#include "sort_numbers.h"

int um_sort_numbers(void *numbers, uint64_t count, uint32_t size, uint32_t kind, void *scratch, uint64_t length) {
  if ((size != 4 && size != 8) || kind > UM_NUMBER_FLOAT || (uintptr_t)numbers % size || (uintptr_t)scratch % size)
    return -EINVAL;
  if (size == 8)
    sort_kind_64(numbers, count, kind, 0x7ffull << 52, scratch, length / size);
  else
    sort_kind_32(numbers, count, kind, 0xffu << 23, scratch, length / size);
  return 0;
}
