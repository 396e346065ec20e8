// When a call waits for another client's: pure arithmetic on times, so the test makes up its own.
#include "hop/gathering.h"

#include <cstdio>

#include "support.h"

namespace {

using namespace trimaran::hop;
using trimaran::DType;
using Ask = Gathering::Ask;
using Span = Gathering::Span;
using Time = Gathering::Time;

constexpr Span us(int64_t n) { return std::chrono::microseconds(n); }

// Two clients, 1 and 2, each of 32 tokens through 50 of 64 experts, 20 µs an expert.
struct Pair {
  explicit Pair(uint32_t n_experts = 64, uint32_t top_k = 6) : gathering(n_experts, top_k, 4096) {}

  Gathering gathering;
  Time now{std::chrono::hours(1)};

  static Ask ask(uint64_t client, int32_t layer, uint32_t n_experts = 50, uint32_t n_tokens = 16) {
    return {client, layer, n_tokens, n_experts, DType::f32};
  }
  // A call alone, 1 ms; then `gap` until the client's next one.
  void call(const Ask& given, Span gap) {
    gathering.arrived(given, now);
    now += us(1000);
    gathering.answered(given, now, us(1000));
    now += gap;
  }
  Span wait(const Ask& given) const { return gathering.start_by(given, now) - now; }
};

void test_a_single_client_never_waits() {
  Pair pair;
  for (int32_t layer = 1; layer < 9; ++layer) {
    CHECK(pair.wait(Pair::ask(1, layer)).count() == 0);
    pair.call(Pair::ask(1, layer), us(100));
  }
  CHECK(pair.wait(Pair::ask(0, 9)).count() == 0);  // nobody knows who this is
}

// Client 2 has been answered in layer 2 and needs 60 µs between layers; 1 asks for layer 3 meanwhile.
Pair with_company_due() {
  Pair pair;
  pair.call(Pair::ask(2, 1), us(60));
  pair.call(Pair::ask(2, 2), us(20));
  return pair;
}

void test_company_that_is_due_is_waited_for() {
  const Pair pair = with_company_due();
  const Span wait = pair.wait(Pair::ask(1, 3));
  CHECK(wait >= us(40) && wait <= us(1000) / Gathering::kShare);
  CHECK(pair.wait(Pair::ask(1, 4)).count() == 0);  // of another layer
  CHECK(pair.wait(Pair::ask(2, 3)).count() == 0);  // itself
}

void test_company_that_could_not_ride_is_not_waited_for() {
  Pair pair;
  pair.call(Pair::ask(2, 1, 64, 512), us(60));
  pair.call(Pair::ask(2, 2, 64, 512), us(20));
  Pair few = with_company_due();
  CHECK(few.wait(Pair::ask(1, 3, 50, 1)).count() > 0);
  CHECK(pair.gathering.most_tokens(Pair::ask(1, 3, 6, 1)) == 17);
  CHECK(pair.wait(Pair::ask(1, 3, 50, 1)).count() == 0);  // a prompt does not ride with one token
  Ask other_type = Pair::ask(1, 3);
  other_type.dtype = DType::bf16;
  CHECK(few.wait(other_type).count() == 0);
}

void test_company_that_asks_already_or_is_late_is_not() {
  Pair late = with_company_due();
  late.now += us(100);
  CHECK(late.wait(Pair::ask(1, 3)).count() == 0);
  Pair asking = with_company_due();
  asking.gathering.arrived(Pair::ask(2, 3), asking.now);
  CHECK(asking.wait(Pair::ask(1, 3)).count() == 0);
  Pair gone = with_company_due();
  gone.gathering.forget(2);
  CHECK(gone.wait(Pair::ask(1, 3)).count() == 0);
  Pair slow;
  slow.call(Pair::ask(2, 1), us(900));  // beyond any window
  slow.call(Pair::ask(2, 2), us(0));
  CHECK(slow.wait(Pair::ask(1, 3)).count() == 0);
}

// One token each, 8 of 256 experts: a quarter of an expert is common.
void test_few_common_experts_are_not_worth_it() {
  Pair pair(256, 8);
  pair.call(Pair::ask(2, 1, 8, 1), us(20));
  pair.call(Pair::ask(2, 2, 8, 1), us(10));
  CHECK(pair.wait(Pair::ask(1, 3, 8, 1)).count() == 0);
  CHECK(pair.wait(Pair::ask(1, 3, 200, 1)).count() > 0);  // with more in common it would be
}

// However the times fall, nobody waits longer than his share.
void test_the_share_is_kept() {
  for (int64_t gap = 1; gap < 400; gap += 7) {
    for (int64_t since = 0; since < 400; since += 11) {
      Pair pair;
      pair.call(Pair::ask(2, 1), us(gap));
      pair.call(Pair::ask(2, 2), us(since));
      const Span wait = pair.wait(Pair::ask(1, 3));
      CHECK(wait.count() >= 0 && wait <= us(1000) / Gathering::kShare);
    }
  }
}

}  // namespace

int main() {
  test_a_single_client_never_waits();
  test_company_that_is_due_is_waited_for();
  test_company_that_could_not_ride_is_not_waited_for();
  test_company_that_asks_already_or_is_late_is_not();
  test_few_common_experts_are_not_worth_it();
  test_the_share_is_kept();
  std::puts("gathering passed");
}
