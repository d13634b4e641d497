/* Products g^T x of two matrices of tokens of which only chosen entries are wanted.
 *
 * A strip is STRIP columns of the result by all its rows, with 64 bits a row that say which entries
 * are wanted. Tokens are the lanes: both operands are turned so that a feature's tokens lie side by
 * side, CHUNK of them in registers at a time. A wanted entry has a vector of partial sums, and is
 * made in the same order whoever works on which strips and whatever else is wanted.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define STRIP 64  /* columns of a strip, bits of a mask */
#define LANES 16  /* floats of a vector */
#define DEPTH 6   /* vectors of tokens that stay in registers, even */
#define BLOCK 64  /* rows whose partial sums are kept together */
#define CHUNK (DEPTH * LANES)
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));

/* to (count, padded) = the transpose of from (rows, count), padded with zeros. */
static void turn(const float *from, int64_t stride, int64_t rows, int64_t count, float *to,
                 int64_t padded) {
    for (int64_t column = 0; column < count; column += LANES)
        for (int64_t row = 0; row < padded; row += LANES) {
            float tile[LANES][LANES];
            int64_t wide = count - column < LANES ? count - column : LANES;
            for (int64_t i = 0; i < LANES; i++)
                for (int64_t j = 0; j < LANES; j++)
                    tile[j][i] = row + i < rows && j < wide ? from[(row + i) * stride + column + j] : 0;
            for (int64_t j = 0; j < wide; j++)
                memcpy(to + (column + j) * padded + row, tile[j], sizeof tile[j]);
        }
}

/* Strips begin:end of the transpose of from (rows, columns), to (columns, padded). */
int snella_turn(int64_t begin, int64_t end, const float *from, int64_t stride, int64_t rows,
                int64_t columns, float *to, int64_t padded) {
    for (int64_t first = begin * STRIP; first < end * STRIP && first < columns; first += STRIP) {
        int64_t count = columns - first < STRIP ? columns - first : STRIP;
        turn(from + first, stride, rows, count, to + first * padded, padded);
    }
    return 0;
}

/* In every 2n lanes: sums of neighbouring n, of a in the first half and of b in the second. */
INLINE vec halves(vec a, vec b, int n) {
    lanes low, high;
    for (int j = 0; j < LANES; j++) {
        low[j] = j / (2 * n) * 2 * n + j % n + (j / n % 2 ? LANES : 0);
        high[j] = low[j] + n;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

/* The sum of each of LANES vectors. */
static void sums(const vec *from, float *to) {
    vec a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = halves(from[i], from[i + 8], 8);
    for (int i = 0; i < 4; i++) b[i] = halves(a[i], a[i + 4], 4);
    for (int i = 0; i < 2; i++) c[i] = halves(b[i], b[i + 2], 2);
    vec all = halves(c[0], c[1], 1);
    memcpy(to, &all, sizeof all);
}

/* Wanted entries of g^T x for some rows and a strip: partial sums over tokens, one a vector. */
static void partial(const float *g, const float *x, int64_t padded, const uint64_t *masks,
                    int64_t rows, vec *to) {
    for (int64_t token = 0; token < padded; token += CHUNK) {
        vec *sum = to;
        for (int64_t row = 0; row < rows; row++) {
            vec here[DEPTH];
            for (int v = 0; v < DEPTH; v++)
                here[v] = *(const vec *)(g + row * padded + token + v * LANES);
            for (uint64_t bits = masks[row]; bits; bits &= bits - 1, sum++) {
                const vec *there = (const vec *)(x + __builtin_ctzll(bits) * padded + token);
                vec even = here[0] * there[0], odd = here[1] * there[1];
                for (int v = 2; v < DEPTH; v += 2) {
                    even += here[v] * there[v];
                    odd += here[v + 1] * there[v + 1];
                }
                *sum = token ? *sum + (even + odd) : even + odd;
            }
        }
    }
}

/* Strips begin:end of to (outs, columns): g^T x where masks (strips, outs) say so, else 0.
 * g (outs, padded) is turned, x (tokens, columns) is not. */
int snella_sample(int64_t begin, int64_t end, const float *g, int64_t padded, int64_t outs,
                  const float *x, int64_t x_stride, int64_t tokens, int64_t columns,
                  const uint64_t *masks, float *to, int64_t stride) {
    float *turned = malloc(4 * STRIP * padded);
    vec *partials = malloc(sizeof(vec) * (BLOCK * STRIP + LANES));
    if (!turned || !partials) { free(turned); free(partials); return 1; }
    for (int64_t index = begin; index < end; index++) {
        int64_t first = index * STRIP, count = columns - first < STRIP ? columns - first : STRIP;
        turn(x + first, x_stride, tokens, count, turned, padded);
        for (int64_t row = 0; row < outs; row += BLOCK) {
            int64_t rows = outs - row < BLOCK ? outs - row : BLOCK;
            const uint64_t *mask = masks + index * outs + row;
            partial(g + row * padded, turned, padded, mask, rows, partials);
            vec *next = partials;
            float ready[LANES];
            int used = LANES;
            for (int64_t r = 0; r < rows; r++) {
                float *line = to + (row + r) * stride + first;
                memset(line, 0, 4 * count);
                for (uint64_t bits = mask[r]; bits; bits &= bits - 1) {
                    if (used == LANES) {
                        sums(next, ready);
                        next += LANES;
                        used = 0;
                    }
                    line[__builtin_ctzll(bits)] = ready[used++];
                }
            }
        }
    }
    free(turned);
    free(partials);
    return 0;
}
