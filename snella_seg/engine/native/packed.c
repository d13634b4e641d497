/* The entries of a matrix that take part, side by side in memory.
 *
 * A strip is STRIP columns by all rows, with 64 bits a row that say which entries take part; its
 * entries lie row by row, and by column within a row, from starts[strip] on.
 */
#include <stdint.h>
#include <string.h>

#define STRIP 64 /* columns of a strip, bits of a mask */
#define AHEAD 8  /* rows that are fetched ahead: they lie too far apart to be foreseen */

static inline void fetch(const float *line) {
    for (int j = 0; j < STRIP; j += 16) __builtin_prefetch(line + j);
}

/* counts[strip]: how many entries it has. */
int snella_count(int64_t begin, int64_t end, const uint64_t *masks, int64_t rows, int64_t *counts) {
    for (int64_t s = begin; s < end; s++) {
        int64_t found = 0;
        for (int64_t row = 0; row < rows; row++)
            found += __builtin_popcountll(masks[s * rows + row]);
        counts[s] = found;
    }
    return 0;
}

/* The entries of `from` (rows, columns), times `scale`, added to what is packed, or in its place. */
int snella_pack(int64_t begin, int64_t end, const uint64_t *masks, int64_t rows,
                const int64_t *starts, const float *from, int64_t stride, float scale, int64_t add,
                float *packed) {
    for (int64_t s = begin; s < end; s++) {
        const uint64_t *mask = masks + s * rows;
        const float *line = from + s * STRIP;
        float *to = packed + starts[s];
        for (int64_t row = 0; row < rows; row++, line += stride) {
            if (row + AHEAD < rows) fetch(line + AHEAD * stride);
            for (uint64_t bits = mask[row]; bits; bits &= bits - 1, to++) {
                float value = scale * line[__builtin_ctzll(bits)];
                *to = add ? *to + value : value;
            }
        }
    }
    return 0;
}

/* to (rows, columns): the packed entries where the masks say so, else those of `base`, or 0. */
int snella_unpack(int64_t begin, int64_t end, const uint64_t *masks, int64_t rows,
                  const int64_t *starts, const float *packed, const float *base,
                  int64_t base_stride, int64_t columns, float *to, int64_t stride) {
    for (int64_t s = begin; s < end; s++) {
        int64_t first = s * STRIP;
        int64_t bytes = 4 * (columns - first < STRIP ? columns - first : STRIP);
        const uint64_t *mask = masks + s * rows;
        const float *from = packed + starts[s];
        float *line = to + first;
        for (int64_t row = 0; row < rows; row++, line += stride) {
            if (row + AHEAD < rows) {
                fetch(line + AHEAD * stride);
                if (base) fetch(base + (row + AHEAD) * base_stride + first);
            }
            if (base)
                memcpy(line, base + row * base_stride + first, bytes);
            else
                memset(line, 0, bytes);
            for (uint64_t bits = mask[row]; bits; bits &= bits - 1)
                line[__builtin_ctzll(bits)] = *from++;
        }
    }
    return 0;
}
