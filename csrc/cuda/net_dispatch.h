// From sizes known at run time to the kernel for them.
#pragma once

#include <stdexcept>

#include "cuda/net_launch.h"
#include "cuda/net_shape.h"

namespace fastode {

// Calls f(Shape{}) for the shape of this many components and layers.
template <class T, class F>
void with_shape(int dim, int layers, F&& f) {
    if (!net_supported(dim, layers)) throw std::invalid_argument("no kernel for matrices of this size");
    const auto with_dim = [&](auto count) {
        constexpr int kLayers = decltype(count)::value;
        switch (dim) {
            case 8: return f(NetShape<T, 8, kLayers>{});
            case 16: return f(NetShape<T, 16, kLayers>{});
            case 32: return f(NetShape<T, 32, kLayers>{});
            case 64: return f(NetShape<T, 64, kLayers>{});
            case 128:
                if constexpr (sizeof(T) == 4 || kLayers == 1) return f(NetShape<T, 128, kLayers>{});
                if constexpr (sizeof(T) == 8 && kLayers == 2) return f(NetWideShape<T, 128, kLayers>{});
                return;
            case 256: return f(NetWideShape<T, 256, kLayers>{});
            default: return f(NetWideShape<T, 512, kLayers>{});
        }
    };
    if (layers == 1) {
        with_dim(std::integral_constant<int, 1>{});
    } else {
        with_dim(std::integral_constant<int, 2>{});
    }
}

}  // namespace fastode
