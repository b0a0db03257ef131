#pragma once

#include <cuda_runtime.h>

#include "cuda/words.cuh"
#include "linear/weight_stages.cuh"

// A step's input in a block's shared memory, normalised, in the order in which tensor cores meet it.
namespace qwen2vl::cuda {

constexpr int kGroupInputs = 32;  // whose order is their own: a lane takes 16 bytes of each group

// From one row to the next: those of two rows, 64 bytes each, are in different places of 128.
inline int64_t staged_row_bytes(int64_t padded_inputs) {
  const int64_t bytes = padded_inputs * 2;
  return bytes % 128 == 0 ? bytes + 64 : bytes;
}

// Eight numbers, two a word, as they lie in memory.
template <FloatType type>
struct Eight {
  Vector vector;
  __device__ static Eight load(const void* data, int64_t at) {  // at: a multiple of 8
    return {static_cast<const Vector*>(data)[at / 8]};
  }
  __device__ float operator[](int i) const { return number_of<type>(vector.words, i); }
};

// Word i ^ turn of a vector for each i.
__device__ inline Vector turned_words(Vector vector, int turn) {
  const auto [a, b, c, d] = vector.words;
  const Vector pairs = turn & 1 ? Vector{{b, a, d, c}} : vector;
  const auto [e, f, g, h] = pairs.words;
  return turn & 2 ? Vector{{g, h, e, f}} : pairs;
}

// Stores the eight numbers with number `eighth` of a row where lane t of each four finds its own: of a group
// the words that stand across from those that it has of the weights, a chunk after the other.
template <MatrixForm form>
__device__ void store_eighth(Vector eight, int eighth, uint32_t* row) {
  uint32_t* const group = row + eighth / 4 * (kGroupInputs / 2);
  const int part = eighth % 4;
  if constexpr (form == MatrixForm::kBlocks4) {  // lane `part`'s, unpacked in pairs of codes i and i + 4
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      group[4 * part + i] =
          __byte_perm(eight.words[i / 2], eight.words[i / 2 + 2], i % 2 == 0 ? 0x5410 : 0x7632);
    }
    return;
  }
  // Words in another order in each of four pairs of groups: a warp's then go to 32 different banks.
  const int turn = eighth / 8 % 4;
  const Vector turned = turned_words(eight, turn);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int word = i ^ turn;
    if constexpr (form == MatrixForm::kPlain) {  // chunk `part`, of which lane i has word i
      group[4 * word + part] = turned.words[i];
    } else {  // a chunk's half, two words a lane
      group[4 * (part % 2 * 2 + word / 2) + part / 2 * 2 + word % 2] = turned.words[i];
    }
  }
}

// A step's input on its way there: rows [first_row, first_row + rows), each with zeros behind up to `padded`
// inputs. All threads of the block make one, and all of them store it.
template <FloatType type, MatrixForm form>
class InputStage {
 public:
  // The norm's first weights are loaded, which are there before the input is.
  __device__ InputStage(const LinearStep& step, int rows, int padded)
      : rows_(rows), eighths_(padded / 8), all_(rows * eighths_), inputs_(static_cast<int>(step.inputs)) {
    load_norm(step, 0, norm_);
  }

  // Returns when the block's threads have stored it. scratch: [rows * warps].
  __device__ void store(const LinearStep& step, int64_t first_row, char* staged, int64_t row_bytes,
                        float* scratch) {
    if (step.norm != nullptr) {
      scale_rows(step, first_row, scratch);
      store_rows<kNormalized>(step, first_row, staged, row_bytes, scratch);
    } else {
      store_rows<kPlain>(step, first_row, staged, row_bytes, scratch);
    }
    __syncthreads();
  }

 private:
  // Eights of inputs that a thread has under way, with weights of the norm and without: more would take
  // registers that let the next kernel's blocks start.
  static constexpr int kNormalized = 3, kPlain = 5;

  struct Place {
    int row, eighth;
    bool is_there, is_input;  // not zeros behind the inputs
  };

  __device__ static int threads() { return static_cast<int>(blockDim.x); }
  __device__ static int warps() { return threads() / kWarp; }

  __device__ Place place_of(int first, int i) const {
    const int index = first + static_cast<int>(threadIdx.x) + i * threads();
    const int row = rows_ == 1 ? 0 : index / eighths_, eighth = index - row * eighths_;
    return {row, eighth, index < all_, index < all_ && eighth * 8 < inputs_};
  }

  __device__ void load_norm(const LinearStep& step, int first, Eight<type> (&norm)[kNormalized]) const {
#pragma unroll
    for (int i = 0; i < kNormalized; ++i) {
      const Place place = place_of(first, i);
      norm[i] = step.norm != nullptr && place.is_input ? Eight<type>::load(step.norm, place.eighth * 8)
                                                       : Eight<type>{};
    }
  }

  template <int at_once>
  __device__ void store_rows(const LinearStep& step, int64_t first_row, char* staged, int64_t row_bytes,
                             const float* scratch) {
#pragma unroll 1
    for (int first = 0; first < all_; first += at_once * threads()) {
      Eight<type> x[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const Place place = place_of(first, i);
        x[i] = place.is_input
                   ? Eight<type>::load(step.x, (first_row + place.row) * inputs_ + place.eighth * 8)
                   : Eight<type>{};
      }
      if constexpr (at_once == kNormalized) {
        if (first > 0) load_norm(step, first, norm_);
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const Place place = place_of(first, i);
        if (!place.is_there) break;
        if constexpr (at_once == kNormalized) {
          const float scale = scratch[place.row * warps()];
          for (int k = 0; k < 8; k += 2) {
            x[i].vector.words[k / 2] =
                rounded_pair<type>(x[i][k] * scale * norm_[i][k], x[i][k + 1] * scale * norm_[i][k + 1]);
          }
        }
        store_eighth<form>(x[i].vector, place.eighth,
                           reinterpret_cast<uint32_t*>(staged + place.row * row_bytes));
      }
    }
  }

  // Leaves each row's 1 / rms in scratch[row * warps].
  __device__ void scale_rows(const LinearStep& step, int64_t first_row, float* scratch) const {
    constexpr int kRows = 2, kVectors = 2;  // loaded side by side
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int first = 0; first < rows_; first += kRows) {
      float sums[kRows] = {};
#pragma unroll 1
      for (int k = thread * 8; k < inputs_; k += kVectors * threads() * 8) {
        Eight<type> x[kVectors][kRows];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int at = k + v * threads() * 8;
#pragma unroll
          for (int b = 0; b < kRows; ++b) {
            x[v][b] = at < inputs_ && first + b < rows_
                          ? Eight<type>::load(step.x, (first_row + first + b) * inputs_ + at)
                          : Eight<type>{};
          }
        }
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
          for (int b = 0; b < kRows; ++b) {
            for (int i = 0; i < 8; ++i) sums[b] = fmaf(x[v][b][i], x[v][b][i], sums[b]);
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        for (int distance = kWarp / 2; distance > 0; distance /= 2) sums[b] += shuffled(sums[b], distance);
        if (thread % kWarp == 0 && first + b < rows_)
          scratch[(first + b) * warps() + thread / kWarp] = sums[b];
      }
    }
    __syncthreads();
    if (thread < rows_) {
      float* const sums = scratch + thread * warps();
      float sum = sums[0];
#pragma unroll 8
      for (int i = 1; i < warps(); ++i) sum += sums[i];
      sums[0] = 1.0f / sqrtf(sum / static_cast<float>(inputs_) + step.epsilon);
    }
    __syncthreads();
  }

  int rows_, eighths_, all_, inputs_;
  Eight<type> norm_[kNormalized];
};

}  // namespace qwen2vl::cuda
