// The reference: in float64, rounded at the end.

#include <cmath>

#include "operations.h"

namespace rwkv::scalar {
namespace {

// A NaN on either side is the result.
double larger(double a, double b) { return a > b || std::isnan(a) ? a : b; }

}  // namespace

void wkv4(const Wkv4Channels& channels, float* numerator, float* denominator, float* exponent,
          float* y) {
    for (size_t i = 0; i < channels.size; ++i) {
        const double k = channels.k[i];
        const double v = channels.v[i];
        const double bonus = channels.first[i] + k;
        double greatest = larger(exponent[i], bonus);
        double past = std::exp(exponent[i] - greatest);
        double now = std::exp(bonus - greatest);
        y[i] = static_cast<float>((past * numerator[i] + now * v) / (past * denominator[i] + now));
        const double aged = static_cast<double>(exponent[i]) + channels.decay[i];
        greatest = larger(aged, k);
        past = std::exp(aged - greatest);
        now = std::exp(k - greatest);
        numerator[i] = static_cast<float>(past * numerator[i] + now * v);
        denominator[i] = static_cast<float>(past * denominator[i] + now);
        exponent[i] = static_cast<float>(greatest);
    }
}

}  // namespace rwkv::scalar
