/* random.h -- counter-based uniform numbers: Philox4x64-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", 2011). Block i of an example has counter (i, example, step, 0) and gives four 64-bit numbers, eight values in (0,1):
 *   u = ((v >> 9) + 0.5) * 2^-23 for the low, then the high 32 bits v. Every value is exact in float32. */
static void FN(uniform)(ptrdiff_t first_block, ptrdiff_t n, uint64_t key0, uint64_t key1, uint64_t example,
                        uint64_t step, real *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i += 8) {
        uint64_t x[4] = { (uint64_t)(first_block + i / 8), example, step, 0 }, k0 = key0, k1 = key1;
        for (int round = 0; round < 10; round++) {
            const unsigned __int128 a = (unsigned __int128)x[0] * 0xD2E7470EE14C6C93u,
                                    b = (unsigned __int128)x[2] * 0xCA5A826395121157u;
            x[0] = (uint64_t)(b >> 64) ^ x[1] ^ k0;
            x[1] = (uint64_t)b;
            x[2] = (uint64_t)(a >> 64) ^ x[3] ^ k1;
            x[3] = (uint64_t)a;
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        for (ptrdiff_t j = 0; j < 8 && i + j < n; j++)
            out[i + j] = ((real)((uint32_t)(x[j / 2] >> (j % 2 * 32)) >> 9) + (real)0.5) * (real)0x1p-23;
    }
}
