#include "cpu/tile/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastode {
namespace {

constexpr const char* kOpNames[] = {
#define FASTODE_NAME(name) #name,
    FASTODE_TILE_OPS(FASTODE_NAME)
#undef FASTODE_NAME
};
constexpr const char* kBaseNames[] = {"NONE",  "IMM",  "IN",  "TIME", "OUT",     "TMP",   "SHARED",
                                      "PARAM", "GOUT", "GIN", "ADJ",  "GSHARED", "GPARAM"};

constexpr unsigned bit(int base) { return 1U << base; }
constexpr unsigned kForwardReads =
    bit(base_in) | bit(base_time) | bit(base_out) | bit(base_tmp) | bit(base_shared) | bit(base_param);
constexpr unsigned kReverseReads = kForwardReads | bit(base_gout) | bit(base_gin) | bit(base_adj);

// Checks the instructions of one routine.
class Checker {
public:
    Checker(const TileProgram& program, const char* routine, int64_t n_tmp, unsigned reads, unsigned writes)
        : program_(program), routine_(routine), n_tmp_(n_tmp), reads_(reads), writes_(writes) {}

    void check(const TileCode& code) {
        for (size_t i = 0; i < code.size(); ++i) {
            at_ = i;
            in_ = &code[i];
            check_one();
        }
    }

private:
    // First and last component that an operand touches; empty if last < first.
    struct Range {
        int64_t first, last;
    };

    [[noreturn]] void fail(const std::string& what) const {
        const std::string op = in_->op >= 0 && in_->op < kTileOps ? kOpNames[in_->op] : std::to_string(in_->op);
        throw std::invalid_argument(std::string(routine_) + "[" + std::to_string(at_) + "] " + op + ": " + what);
    }

    int64_t size(int base) const {
        switch (base) {
            case base_in:
            case base_out:
            case base_gout:
            case base_gin: return program_.dim;
            case base_time: return 1;
            case base_tmp: return n_tmp_;
            case base_shared: return program_.n_shared;
            case base_param: return program_.n_param;
            case base_adj: return program_.n_adj;
            case base_gshared: return program_.n_gshared;
            case base_gparam: return program_.n_gparam;
            default: return 0;
        }
    }

    static Range extent(const TileOperand& x, int64_t n0, int64_t s0, int64_t n1 = 1, int64_t s1 = 0) {
        if (n0 <= 0 || n1 <= 0) return {0, -1};
        const int64_t a = (n0 - 1) * s0, b = (n1 - 1) * s1;
        return {x.offset + std::min<int64_t>(0, a) + std::min<int64_t>(0, b),
                x.offset + std::max<int64_t>(0, a) + std::max<int64_t>(0, b)};
    }

    void inside(const TileOperand& x, Range range, unsigned allowed, const char* name) const {
        if (x.base < 0 || x.base >= kTileBases || (allowed & bit(x.base)) == 0) {
            const std::string base = x.base >= 0 && x.base < kTileBases ? kBaseNames[x.base] : std::to_string(x.base);
            fail(std::string("operand ") + name + " may not be of base " + base + " here");
        }
        if (range.last < range.first) return;
        if (range.first < 0 || range.last >= size(x.base)) {
            fail(std::string("operand ") + name + " touches components " + std::to_string(range.first) + ".." +
                 std::to_string(range.last) + " of " + kBaseNames[x.base] + ", which has " +
                 std::to_string(size(x.base)));
        }
    }

    void apart(Range out, const TileOperand& x, Range range, const char* name) const {
        if (x.base != in_->out.base || out.last < out.first || range.last < range.first) return;
        if (out.first <= range.last && range.first <= out.last) {
            fail(std::string("out overlaps operand ") + name);
        }
    }

    static bool same_place(const TileOperand& x, const TileOperand& y) {
        return x.base == y.base && x.offset == y.offset && x.s0 == y.s0 && x.s1 == y.s1;
    }

    void check_one() const {
        const TileInstruction& in = *in_;
        if (in.op < 0 || in.op >= kTileOps) fail("there is no such operation");
        if (in.n0 < 0 || in.n1 < 0 || in.n2 < 0) fail("negative size");
        const bool accumulates = in.op == op_acc || in.op == op_acc_outer;
        const bool in_accumulate = writes_ == (bit(base_gshared) | bit(base_gparam));
        if (accumulates != in_accumulate) fail("this operation does not belong into this routine");
        if (in.op < kFirstOther) return check_pointwise();
        switch (in.op) {
            case op_fill: return inside(in.out, extent(in.out, in.n0, 1), writes_, "out");
            case op_gather: return check_gather();
            case op_scatter: return check_scatter();
            case op_sum:
            case op_amax: return check_reduction();
            case op_matmul: return check_matmul();
            case op_acc_outer:
                inside(in.out, extent(in.out, in.n0, in.out.s0, in.n1, in.out.s1), writes_, "out");
                inside(in.a, extent(in.a, in.n0, in.a.s0, in.n2, in.a.s1), reads_ & ~bit(base_shared), "a");
                return inside(in.b, extent(in.b, in.n1, in.b.s0, in.n2, in.b.s1), reads_ & ~bit(base_shared), "b");
            default:
                inside(in.out, extent(in.out, in.n0, in.out.s0), writes_, "out");
                return inside(in.a, extent(in.a, in.n0, 1), reads_ & ~bit(base_shared), "a");
        }
    }

    void check_pointwise() const {
        const TileInstruction& in = *in_;
        const Range out = extent(in.out, in.n0, 1);
        if (in.out.s0 != 1 && in.n0 > 1) fail("out must advance by one component");
        inside(in.out, out, writes_, "out");
        const int operands = in.op < kFirstBinary ? 1 : in.op < kFirstTernary ? 2 : 3;
        const TileOperand* each[3] = {&in.a, &in.b, &in.c};
        const char* names[3] = {"a", "b", "c"};
        for (int i = 0; i < operands; ++i) {
            const TileOperand& x = *each[i];
            if (x.base == base_imm) continue;
            if (x.s0 != 0 && x.s0 != 1) fail(std::string("operand ") + names[i] + " must have stride 0 or 1");
            const Range range = extent(x, in.n0, x.s0);
            inside(x, range, reads_, names[i]);
            const bool on_top = x.base == in.out.base && x.offset == in.out.offset && (x.s0 == 1 || in.n0 <= 1);
            if (!on_top) apart(out, x, range, names[i]);
        }
        if (operands == 3 && in.b.base == base_imm && in.c.base == base_imm) fail("b and c cannot both be immediates");
    }

    const int32_t* map(int64_t n) const {
        const int64_t start = in_->map;
        if (start < 0 || start + n > static_cast<int64_t>(program_.maps.size())) fail("its map lies outside the maps");
        return program_.maps.data() + start;
    }

    void check_gather() const {
        const TileInstruction& in = *in_;
        const Range out = extent(in.out, in.n0, 1);
        inside(in.out, out, writes_, "out");
        const int32_t* indices = map(in.n0);
        int64_t most = -1;
        for (int64_t i = 0; i < in.n0; ++i) most = std::max<int64_t>(most, indices[i]);
        const Range from = extent(in.a, most + 1, 1);
        inside(in.a, from, reads_, "a");
        apart(out, in.a, from, "a");
    }

    void check_scatter() const {
        const TileInstruction& in = *in_;
        const Range out = extent(in.out, in.n1, 1), from = extent(in.a, in.n0, 1);
        inside(in.out, out, writes_, "out");
        inside(in.a, from, reads_, "a");
        apart(out, in.a, from, "a");
        const int32_t* indices = map(in.n0);
        for (int64_t i = 0; i < in.n0; ++i) {
            if (indices[i] >= in.n1) fail("its map points outside the output");
        }
    }

    void check_reduction() const {
        const TileInstruction& in = *in_;
        const Range out = extent(in.out, int64_t{in.n0} * in.n2, 1);
        const Range from = extent(in.a, int64_t{in.n0} * in.n1 * in.n2, 1);
        inside(in.out, out, writes_, "out");
        inside(in.a, from, reads_, "a");
        apart(out, in.a, from, "a");
    }

    void check_matmul() const {
        const TileInstruction& in = *in_;
        const Range out = extent(in.out, in.n0, in.out.s0, in.n2, in.out.s1);
        const Range a = extent(in.a, in.n0, in.a.s0, in.n1, in.a.s1);
        const Range b = extent(in.b, in.n1, in.b.s0, in.n2, in.b.s1);
        inside(in.out, out, writes_, "out");
        inside(in.a, a, reads_, "a");
        inside(in.b, b, reads_, "b");
        apart(out, in.a, a, "a");
        apart(out, in.b, b, "b");
        if (in.c.base == base_none) return;
        const Range c = extent(in.c, in.n0, in.c.s0, in.n2, in.c.s1);
        inside(in.c, c, reads_, "c");
        if (!same_place(in.c, in.out)) apart(out, in.c, c, "c");
    }

    const TileProgram& program_;
    const char* routine_;
    int64_t n_tmp_;
    unsigned reads_, writes_;
    size_t at_ = 0;
    const TileInstruction* in_ = nullptr;
};

void check_packs(const std::vector<TilePack>& packs, const std::vector<int64_t>& sizes, int64_t n, const char* name) {
    for (const TilePack& p : packs) {
        const auto fail = [name](const char* what) { throw std::invalid_argument(std::string(name) + ": " + what); };
        if (p.leaf < 0 || p.leaf >= static_cast<int64_t>(sizes.size())) fail("there is no such leaf");
        if (p.rows < 0 || p.cols < 0) fail("negative size");
        if (p.rows == 0 || p.cols == 0) continue;
        const int64_t a = (p.rows - 1) * p.src_rs, b = (p.cols - 1) * p.src_cs;
        const int64_t first = p.src + std::min<int64_t>(0, a) + std::min<int64_t>(0, b);
        const int64_t last = p.src + std::max<int64_t>(0, a) + std::max<int64_t>(0, b);
        if (first < 0 || last >= sizes[static_cast<size_t>(p.leaf)]) fail("reads outside its leaf");
        if (p.dst < 0 || p.dst + p.rows * p.cols > n) fail("writes outside the packed constants");
    }
}

void check_lanes(int64_t lanes) {
    if (lanes == 1 || (lanes >= 16 && lanes <= 256 && lanes % 16 == 0)) return;
    throw std::invalid_argument("lanes must be 1 or a multiple of 16 up to 256, got " + std::to_string(lanes));
}

}  // namespace

void TileProgram::check() const {
    check_lanes(lanes);
    check_lanes(backward_lanes);
    for (const int64_t n : {dim, n_tmp, n_tmp_keep, n_adj, n_shared, n_param, n_gshared, n_gparam}) {
        if (n < 0 || n > (int64_t{1} << 30)) throw std::invalid_argument("a size is negative or too large");
    }
    const unsigned forward_writes = bit(base_tmp) | bit(base_out);
    Checker(*this, "forward", n_tmp, kForwardReads, forward_writes).check(forward);
    Checker(*this, "forward_keep", n_tmp_keep, kForwardReads, forward_writes).check(forward_keep);
    Checker(*this, "reverse", n_tmp_keep, kReverseReads, bit(base_adj) | bit(base_gin)).check(reverse);
    Checker(*this, "accumulate", n_tmp_keep, kReverseReads, bit(base_gshared) | bit(base_gparam)).check(accumulate);
    check_packs(shared_pack, shared_sizes, n_shared, "shared_pack");
    check_packs(param_pack, param_sizes, n_param, "param_pack");
}

bool reads_time(const TileCode& code) {
    return std::any_of(code.begin(), code.end(), [](const TileInstruction& in) {
        return in.a.base == base_time || in.b.base == base_time || in.c.base == base_time;
    });
}

double estimated_ns(const TileCode& code, int64_t lanes) {
    double total = 0;
    for (const TileInstruction& in : code) {
        const double n0 = in.n0, n1 = in.n1, n2 = in.n2;
        total += 5.0 / static_cast<double>(lanes);
        switch (in.op) {
            case op_matmul:
            case op_acc_outer: total += 0.06 * n0 * n1 * n2; break;
            case op_sum:
            case op_amax: total += 0.2 * n0 * n1 * n2; break;
            default: total += (in.op >= op_exp && in.op <= op_erf ? 1.5 : 0.2) * n0; break;
        }
    }
    return total;
}

}  // namespace fastode
