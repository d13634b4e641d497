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

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif
#define LOW(n, j) ((j) / (2 * (n)) * 2 * (n) + (j) % (n) + ((j) / (n) % 2 ? LANES : 0))
#define ALL(n, by)                                                                          \
    LOW(n, 0) + by, LOW(n, 1) + by, LOW(n, 2) + by, LOW(n, 3) + by, LOW(n, 4) + by,         \
    LOW(n, 5) + by, LOW(n, 6) + by, LOW(n, 7) + by, LOW(n, 8) + by, LOW(n, 9) + by,         \
    LOW(n, 10) + by, LOW(n, 11) + by, LOW(n, 12) + by, LOW(n, 13) + by, LOW(n, 14) + by,    \
    LOW(n, 15) + by
/* In every 2n lanes: sums of neighbouring n, of a in the first half and of b in the second. */
#define HALVES(a, b, n) (PICK(a, b, ALL(n, 0)) + PICK(a, b, ALL(n, n)))

/* The sum of each of LANES vectors. */
static void sums(const vec *from, float *to) {
    vec a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = HALVES(from[i], from[i + 8], 8);
    for (int i = 0; i < 4; i++) b[i] = HALVES(a[i], a[i + 4], 4);
    for (int i = 0; i < 2; i++) c[i] = HALVES(b[i], b[i + 2], 2);
    vec all = HALVES(c[0], c[1], 1);
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
