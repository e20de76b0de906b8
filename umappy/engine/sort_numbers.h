/* sort_numbers.h: the body of sort_numbers.c for one width; included there once for each. `number` is the unsigned
 * type, NAME(x) makes the width's own name of x. Keys are numbers with the bits of `flip` turned over, and compare as
 * unsigned. */

static unsigned NAME(highest)(number n) { /* bit; n is not 0 */
  return 63 - (unsigned)__builtin_clzll(n);
}

static void NAME(insert)(number *numbers, uint64_t count, number flip) {
  for (uint64_t i = 1; i < count; i++) {
    number key = numbers[i] ^ flip;
    uint64_t at = i;
    for (; at > 0 && (numbers[at - 1] ^ flip) > key; at--)
      numbers[at] = numbers[at - 1];
    numbers[at] = key ^ flip;
  }
}

static void NAME(sort)(number *numbers, uint64_t count, number flip, number *scratch, uint64_t room);

/* Sorts every stretch whose bits from `low` on are the same. */
static void NAME(finish)(number *numbers, uint64_t count, number flip, unsigned low, number *scratch, uint64_t room) {
  for (uint64_t i = 1; i < count; i++) {
    if ((numbers[i - 1] ^ numbers[i]) >> low)
      continue;
    uint64_t first = i - 1;
    while (i < count && (numbers[first] ^ numbers[i]) >> low == 0)
      i++;
    NAME(sort)(numbers + first, i - first, flip, scratch, room);
  }
}

/* From digit to digit between the numbers and the scratch, of the highest digits as many as nearly tell all apart. */
static void NAME(by_copying)(number *numbers, uint64_t count, number flip, number varying, number *scratch,
                             uint64_t room) {
  unsigned shifts[sizeof(number)], digits = 0, low = NAME(highest)(varying) + 1;
  unsigned wanted = NAME(highest)((number)count) + 1 + SPARE_BITS;
  while (low > 0 && digits * DIGIT_BITS < wanted)
    shifts[digits++] = low = low > DIGIT_BITS ? low - DIGIT_BITS : 0;
  uint32_t places[sizeof(number)][DIGITS];
  memset(places, 0, digits * sizeof *places);
  for (uint64_t i = 0; i < count; i++)
    for (unsigned k = 0; k < digits; k++)
      places[k][(numbers[i] ^ flip) >> shifts[k] & DIGIT_MASK]++;
  number *from = numbers, *to = scratch;
  for (unsigned k = digits; k-- > 0;) {
    uint32_t place = 0;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
      uint32_t same = places[k][digit];
      places[k][digit] = place;
      place += same;
    }
    for (uint64_t i = 0; i < count; i++)
      to[places[k][(from[i] ^ flip) >> shifts[k] & DIGIT_MASK]++] = from[i];
    number *sorted = to;
    to = from;
    from = sorted;
  }
  if (from != numbers)
    memcpy(numbers, from, count * sizeof *numbers);
  if (low > 0)
    NAME(finish)(numbers, count, flip, low, scratch, room);
}

/* In place, by the highest digit; what has it in common is sorted by itself. Each number goes to its digit's next
 * place, and what was there is looked at when its own place's turn comes: no step waits for the one before. */
static void NAME(in_place)(number *numbers, uint64_t count, number flip, number varying, number *scratch,
                           uint64_t room) {
  unsigned low = NAME(highest)(varying) + 1, shift = low > DIGIT_BITS ? low - DIGIT_BITS : 0;
  uint64_t next[DIGITS], ends[DIGITS], same[DIGITS] = {0}, place = 0;
  for (uint64_t i = 0; i < count; i++)
    same[(numbers[i] ^ flip) >> shift & DIGIT_MASK]++;
  for (unsigned digit = 0; digit < DIGITS; digit++) {
    next[digit] = place;
    ends[digit] = place += same[digit];
  }
  for (bool done = false; !done;) {
    done = true;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
      for (uint64_t i = next[digit]; i < ends[digit]; i++) {
        number moved = numbers[i];
        uint64_t to = next[(moved ^ flip) >> shift & DIGIT_MASK]++;
        numbers[i] = numbers[to];
        numbers[to] = moved;
      }
      done = done && next[digit] == ends[digit];
    }
  }
  for (unsigned digit = 0; digit < DIGITS && shift > 0; digit++)
    NAME(sort)(numbers + ends[digit] - same[digit], same[digit], flip, scratch, room);
}

static void NAME(sort)(number *numbers, uint64_t count, number flip, number *scratch, uint64_t room) {
  if (count <= FEW) {
    NAME(insert)(numbers, count, flip);
    return;
  }
  number varying = 0;
  for (uint64_t i = 1; i < count; i++)
    varying |= numbers[0] ^ numbers[i];
  if (varying == 0)
    return;
  if (count <= room)
    NAME(by_copying)(numbers, count, flip, varying, scratch, room);
  else
    NAME(in_place)(numbers, count, flip, varying, scratch, room);
}

/* NaN goes to the end, of the rest the bits become an unsigned key. Returns how many those are. */
static uint64_t NAME(encode)(number *numbers, uint64_t count, number infinity) {
  for (uint64_t i = 0; i < count;) {
    number n = numbers[i];
    if ((n & ~SIGN) > infinity) {
      numbers[i] = numbers[--count];
      numbers[count] = n;
    } else {
      numbers[i++] = n ^ (n & SIGN ? (number)-1 : SIGN);
    }
  }
  return count;
}

static void NAME(sort_floats)(number *numbers, uint64_t count, number infinity, number *scratch, uint64_t room) {
  count = NAME(encode)(numbers, count, infinity);
  NAME(sort)(numbers, count, 0, scratch, room);
  for (uint64_t i = 0; i < count; i++)
    numbers[i] ^= numbers[i] & SIGN ? SIGN : (number)-1;
}

static void NAME(sort_kind)(number *numbers, uint64_t count, uint32_t kind, number infinity, number *scratch,
                            uint64_t room) {
  room = um_min(room, ROOM_BYTES / sizeof(number));
  if (kind == UM_NUMBER_FLOAT)
    NAME(sort_floats)(numbers, count, infinity, scratch, room);
  else
    NAME(sort)(numbers, count, kind == UM_NUMBER_SIGNED ? SIGN : 0, scratch, room);
}
