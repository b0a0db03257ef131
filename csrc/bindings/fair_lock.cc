#include "common/fair_lock.h"

#include <memory>
#include <utility>

#include "bindings/bindings.h"
#include "common/error.h"
#include "generate/request.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

// One call's place in the queue. It is freed with the object, so that an interrupt between any two
// instructions of the interpreter leaves no lock held.
class Turn {
 public:
  Turn(std::shared_ptr<FairLock> lock, std::shared_ptr<CancelToken> cancel)
      : lock_(std::move(lock)), cancel_(std::move(cancel)) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() { leave(); }

  bool enter() {
    if (held_) throw Error("a turn is entered once: ask for another one");
    const py::gil_scoped_release release;
    held_ = lock_->lock([this] {
      const py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
      return cancel_ && cancel_->cancelled();
    });
    return held_;
  }

  void leave() {
    if (held_) lock_->unlock();
    held_ = false;
  }

 private:
  std::shared_ptr<FairLock> lock_;
  std::shared_ptr<CancelToken> cancel_;
  bool held_ = false;
};

}  // namespace

void register_fair_lock(py::module_& m) {
  py::class_<Turn>(m, "Turn", "A place in a FairLock's queue, for one `with` block.")
      .def("__enter__", &Turn::enter, "Whether the lock is held: false when the token was set before.")
      .def("__exit__", [](Turn& turn, const py::args&) { turn.leave(); });

  py::class_<FairLock, std::shared_ptr<FairLock>>(
      m, "FairLock", "Mutual exclusion in order of arrival; Ctrl-C and cancels reach those that wait.")
      .def(py::init<>())
      .def(
          "turn",
          [](std::shared_ptr<FairLock> lock, std::shared_ptr<CancelToken> cancel) {
            return std::make_unique<Turn>(std::move(lock), std::move(cancel));
          },
          py::arg("cancel") = py::none(), "A turn; setting the token takes it out of the queue.")
      .def_property_readonly("held", &FairLock::held)
      .def_property_readonly("waiting", &FairLock::waiting, "How many wait for their turn.");
}

}  // namespace qwen2vl
