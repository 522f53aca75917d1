#include "delegate/report.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu_features.h"
#include "kernels.h"

namespace deploy {
namespace {

pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
Decisions* g_first;
char* g_text;  ///< what deploy_kernels_report() returned last

/// Text that grows.
struct Text {
  char* data = nullptr;
  size_t length = 0, room = 0;
  bool failed = false;

  void append(const char* bytes, size_t count) {
    if (failed) return;
    if (length + count + 1 > room) {
      const size_t larger = (length + count + 1) * 2;
      char* const moved = static_cast<char*>(realloc(data, larger));
      if (!moved) {
        failed = true;
        return;
      }
      data = moved;
      room = larger;
    }
    memcpy(data + length, bytes, count);
    length += count;
    data[length] = 0;
  }

  __attribute__((format(printf, 2, 3))) void print(const char* format, ...) {
    char line[320];
    va_list values;
    va_start(values, format);
    const int written = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (written > 0) append(line, static_cast<size_t>(written) < sizeof line ? static_cast<size_t>(written) : sizeof line - 1);
  }

  /// A JSON string; bytes beyond ASCII are UTF-8 already or become '?'.
  void quote(const char* value) {
    append("\"", 1);
    for (const char* c = value; *c; ++c) {
      if (*c == '"' || *c == '\\') append("\\", 1);
      if (static_cast<unsigned char>(*c) < 0x20) {
        print("\\u%04x", static_cast<unsigned>(*c));
      } else if (static_cast<unsigned char>(*c) < 0x80) {
        append(c, 1);
      } else {
        append("?", 1);
      }
    }
    append("\"", 1);
  }
};

void print_decision(Text& text, const Decision& d) {
  text.print("{\"node\": %d, \"op\": \"%s\", \"name\": ", d.node, d.op);
  text.quote(d.name ? d.name : "");
  text.print(", \"claimed\": %s, \"kernel\": ", d.claimed ? "true" : "false");
  if (d.claimed) {
    text.quote(d.kernel);
  } else {
    text.print("null");
  }
  text.print(", \"reason\": ");
  text.quote(d.reason);
  text.print(", \"packed_bytes\": %zu, \"stored_bytes\": %zu, \"macs\": %" PRId64, d.packed_bytes, d.stored_bytes, d.macs);
  if (d.gain > 0) {
    text.print(", \"expected_gain\": %.2f", d.gain);
  } else {
    text.print(", \"expected_gain\": null");
  }
  text.print(", \"invocations\": %" PRIu64 ", \"time_ns\": %" PRIu64 "}",
             __atomic_load_n(&d.invocations, __ATOMIC_RELAXED), __atomic_load_n(&d.time_ns, __ATOMIC_RELAXED));
}

/// `only` null: all that are listed, which needs the lock.
void print_report(Text& text, const Decisions* only) {
  const Decisions* const first = only ? only : g_first;
  text.print("{\"abi\": %d, \"cpu\": \"%s\", \"mode\": ", DEPLOY_KERNELS_ABI, cpu_isa_names());
  text.quote(first ? first->mode : "off");
  text.print(", \"nodes\": [");
  bool any = false;
  for (const Decisions* d = first; d; d = only ? nullptr : d->next) {
    for (size_t i = 0; i < d->count; ++i) {
      if (any) text.print(", ");
      any = true;
      print_decision(text, *d->entries[i]);
    }
  }
  text.print("]}");
}

}  // namespace

Decision* add_decision(Decisions* decisions, const char* name) {
  Decision* const entry = static_cast<Decision*>(calloc(1, sizeof(Decision)));
  Decision** const moved =
      static_cast<Decision**>(realloc(decisions->entries, (decisions->count + 1) * sizeof(Decision*)));
  if (moved) decisions->entries = moved;
  if (!entry || !moved) {
    free(entry);
    return nullptr;
  }
  entry->name = strdup(name ? name : "");
  pthread_mutex_lock(&g_lock);
  decisions->entries[decisions->count++] = entry;
  pthread_mutex_unlock(&g_lock);
  return entry;
}

void free_decisions(Decisions* decisions) {
  for (size_t i = 0; i < decisions->count; ++i) {
    free(decisions->entries[i]->name);
    free(decisions->entries[i]);
  }
  free(decisions->entries);
  decisions->entries = nullptr;
  decisions->count = 0;
}

void enlist(Decisions* decisions) {
  pthread_mutex_lock(&g_lock);
  decisions->next = g_first;
  g_first = decisions;
  pthread_mutex_unlock(&g_lock);
}

void delist(Decisions* decisions) {
  pthread_mutex_lock(&g_lock);
  for (Decisions** at = &g_first; *at; at = &(*at)->next) {
    if (*at == decisions) {
      *at = decisions->next;
      break;
    }
  }
  pthread_mutex_unlock(&g_lock);
}

bool write_report(const Decisions* decisions, const char* path) {
  Text text;
  print_report(text, decisions);
  text.append("\n", 1);
  FILE* const file = text.failed ? nullptr : fopen(path, "w");
  bool written = file && fwrite(text.data, 1, text.length, file) == text.length;
  if (file && fclose(file) != 0) written = false;
  free(text.data);
  return written;
}

}  // namespace deploy

extern "C" const char* deploy_kernels_report(void) {
  deploy::Text text;
  pthread_mutex_lock(&deploy::g_lock);
  deploy::print_report(text, nullptr);
  free(deploy::g_text);
  deploy::g_text = text.failed ? nullptr : text.data;
  if (text.failed) free(text.data);
  const char* const given = deploy::g_text ? deploy::g_text : "";
  pthread_mutex_unlock(&deploy::g_lock);
  return given;
}
