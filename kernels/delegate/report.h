/// What the delegate decided for each node, kept for whoever asks.
#ifndef DEPLOY_KERNELS_DELEGATE_REPORT_H_
#define DEPLOY_KERNELS_DELEGATE_REPORT_H_

#include <stddef.h>
#include <stdint.h>

namespace deploy {

/// One node.  Strings are constants or owned by the entry.
struct Decision {
  int node;                   ///< index in the model's execution order of operators
  const char* op;             ///< as in the schema
  char* name;                 ///< of the output tensor
  bool claimed;
  const char* kernel;         ///< variant's name; null where not claimed
  const char* reason;
  size_t packed_bytes;        ///< resident
  size_t stored_bytes;        ///< of the filter in the model
  int64_t macs;               ///< dense multiplications
  double gain;                ///< expected against the stock runtime; 0: it cannot run the node
  uint64_t invocations, time_ns;  ///< where profiling is on; atomic
};

/// All decisions of one model; grows, never shrinks.
struct Decisions {
  Decision** entries = nullptr;
  size_t count = 0;
  const char* mode = "auto";
  Decisions* next = nullptr;  ///< of the process's list
};

/// Adds an entry; null when memory is short.  `name` is copied.
Decision* add_decision(Decisions* decisions, const char* name);

void free_decisions(Decisions* decisions);

/// Enters and leaves the process-wide list.
void enlist(Decisions* decisions);
void delist(Decisions* decisions);

/// Writes all decisions of `decisions` (null: of the process) as JSON to `path`; false where that fails.
bool write_report(const Decisions* decisions, const char* path);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_REPORT_H_
