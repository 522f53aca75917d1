// Moves the registers behind a virtual board's power meters; the kernel's real drivers read them.
//
//   power once RAIL...                  identify the chips and show idle power: before the drivers bind
//   power load HZ RAIL...               HZ times a second: power follows the CPU load of /proc/stat, for ever
//   power play TRACE LOG SECONDS RAIL   power follows a file of lines "t_ns mW", again and again for SECONDS; what was
//                                       really shown goes to LOG, a line "t_ns mW" for each write (CLOCK_MONOTONIC);
//                                       `load` waits meanwhile
//
// RAIL is CHIP:BUS:ADDRESS:CHANNEL:SHUNT_UOHM:MV:IDLE_MW:BUSY_MW, power between IDLE and BUSY in proportion to the share
// of all CPUs' time that is not idle.  The voltage is constant.  It is a model and no measurement: nothing here knows
// what the instructions are that keep a CPU busy.
//
// Chips: ina3221, ina226, ina238 (registers of TI's data sheets SBOS576, SBOS547, SLYS020), irps5401 (PMBus), on the
// kernel's i2c-stub; pmic, the Raspberry Pi 5's, through vcio.c, where BUS to SHUNT_UOHM mean nothing.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/i2c-dev.h>
#include <linux/i2c.h>

#define RAILS 8
#define LOCK "/run/power.lock"
#define PMIC "/sys/module/vcio/parameters/pmic_read_adc"

struct rail {
  char chip[16];
  int fd;
  unsigned channel;
  double shunt_uohm, mv, idle_mw, busy_mw;
};

static void die(const char* what) {
  fprintf(stderr, "power: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void transfer(const struct rail* rail, uint8_t reg, uint32_t size, union i2c_smbus_data* data) {
  struct i2c_smbus_ioctl_data request = {I2C_SMBUS_WRITE, reg, size, data};
  if (ioctl(rail->fd, I2C_SMBUS, &request) < 0) die(rail->chip);
}

// SMBus sends the low byte first, and so it lies in the stub.
static void set_word(const struct rail* rail, uint8_t reg, uint16_t value) {
  union i2c_smbus_data data = {.word = value};
  transfer(rail, reg, I2C_SMBUS_WORD_DATA, &data);
}

// TI's chips send the high byte first.
static void set(const struct rail* rail, uint8_t reg, long value) {
  set_word(rail, reg, (uint16_t)((value & 0xff) << 8 | (value >> 8 & 0xff)));
}

static void set_byte(const struct rail* rail, uint8_t reg, uint8_t value) {
  union i2c_smbus_data data = {.byte = value};
  transfer(rail, reg, I2C_SMBUS_BYTE_DATA, &data);
}

// The stub keeps a block in the low bytes of as many registers, of its first bank, whichever is chosen.
static void set_block(const struct rail* rail, uint8_t reg, const uint8_t* bytes, uint8_t count) {
  union i2c_smbus_data data;
  data.block[0] = count;
  memcpy(data.block + 1, bytes, count);
  transfer(rail, reg, I2C_SMBUS_I2C_BLOCK_DATA, &data);
}

static void identify(const struct rail* rail) {
  if (!strcmp(rail->chip, "ina3221")) {
    set(rail, 0x00, 0x7127);
    set(rail, 0xfe, 0x5449);
    set(rail, 0xff, 0x3220);
    set(rail, 2 + 2 * rail->channel, lround(rail->mv / 8) << 3);
  } else if (!strcmp(rail->chip, "ina226")) {
    set(rail, 0x00, 0x4127);
    set(rail, 0xfe, 0x5449);
    set(rail, 0xff, 0x2260);
    set(rail, 0x02, lround(rail->mv / 1.25));
  } else if (!strcmp(rail->chip, "ina238")) {
    set(rail, 0x3e, 0x5449);
    set(rail, 0x3f, 0x2381);
    set(rail, 0x05, lround(rail->mv / 3.125));
    set(rail, 0x06, 35000 / 125 << 4);  // 35 C
  } else if (!strcmp(rail->chip, "irps5401")) {
    // Five pages; LINEAR11 words are exponent << 11 | mantissa.  All but the first page are off.
    for (uint8_t page = 5; page-- > 0;) {
      set_byte(rail, 0x00, page);
      set_byte(rail, 0x20, 0x17);  // VOUT_MODE: volts times 2^-9
      set_word(rail, 0x8b, page ? 0 : (uint16_t)lround(rail->mv * 512 / 1000));
      set_word(rail, 0x88, 0xd300);  // 12 V in
      set_word(rail, 0x89, 0xd000);  // IIN   2^-6 A
      set_word(rail, 0x8c, 0xd000);  // IOUT  2^-6 A
      set_word(rail, 0x8d, 0xe230);  // 35 C
      set_word(rail, 0x96, 0xd800);  // POUT  2^-5 W
      set_word(rail, 0x97, 0xd800);  // PIN   2^-5 W
    }
  } else if (strcmp(rail->chip, "pmic") != 0) {
    errno = EINVAL;
    die(rail->chip);
  }
}

static void show_pmic(double mw) {
  // Rails, their currents and voltages as a Raspberry Pi 5 at rest shows them; the core takes the rest of the power.
  static const struct {
    const char* name;
    int amps_at, volts_at;
    double amps, volts;
  } rails[] = {
      {"3V7_WL_SW", 0, 8, 0.0975744, 3.696406},  {"3V3_SYS", 1, 9, 0.0653885, 3.3129},
      {"1V8_SYS", 2, 10, 0.1678478, 1.798535},   {"DDR_VDD2", 3, 11, 0.0195206, 1.106926},
      {"DDR_VDDQ", 4, 12, 0, 0.6106209},         {"1V1_SYS", 5, 13, 0.1815419, 1.104362},
      {"0V8_SW", 6, 14, 0.3211045, 0.8030476},   {"3V3_DAC", 17, 20, 0.000061, 3.311778},
      {"3V3_ADC", 18, 21, 0.0003053, 3.310862},  {"0V8_AON", 16, 19, 0.0035409, 0.7985336},
      {"HDMI", 22, 23, 0.0120879, 5.1533},
  };
  const int count = sizeof(rails) / sizeof(rails[0]);
  const double core_volts = 0.8974594;
  char text[2048];
  int at = 0;
  double left = mw / 1000;
  for (int i = 0; i < count; ++i) {
    left -= rails[i].amps * rails[i].volts;
    at += sprintf(text + at, "%12s_A current(%d)=%.8fA\n", rails[i].name, rails[i].amps_at, rails[i].amps);
  }
  at += sprintf(text + at, "%12s_A current(7)=%.8fA\n", "VDD_CORE", left > 0 ? left / core_volts : 0);
  for (int i = 0; i < count; ++i) {
    at += sprintf(text + at, "%12s_V volt(%d)=%.8fV\n", rails[i].name, rails[i].volts_at, rails[i].volts);
  }
  at += sprintf(text + at, "%12s_V volt(15)=%.8fV\n%12s_V volt(24)=5.15025000V\n%12s_V volt(25)=0.00000000V", "VDD_CORE",
                core_volts, "EXT5V", "BATT");
  int fd = open(PMIC, O_WRONLY);
  if (fd < 0 || write(fd, text, (size_t)at) != at) die(PMIC);
  close(fd);
}

// Shows a power; returns what it is in the chip's own steps, in mW.
static double show(const struct rail* rail, double mw) {
  const double ma = mw * 1000 / rail->mv, shunt_uv = ma * rail->shunt_uohm / 1000;
  if (!strcmp(rail->chip, "ina3221")) {
    static long all[3];  // of one such chip
    const long steps = all[rail->channel % 3] = lround(shunt_uv / 40);
    set(rail, 1 + 2 * rail->channel, steps << 3);
    set(rail, 0x0d, (all[0] + all[1] + all[2]) << 1);
    return (double)steps * 40 * 1000 / rail->shunt_uohm * rail->mv / 1000;
  }
  if (!strcmp(rail->chip, "ina226")) {
    const double current_ua = lround(2500000 / rail->shunt_uohm);  // one step, as the driver has it
    const long steps = lround(mw * 1000 / (25 * current_ua));
    set(rail, 0x01, lround(shunt_uv / 2.5));
    set(rail, 0x04, lround(ma * 1000 / current_ua));
    set(rail, 0x03, steps);
    return (double)steps * 25 * current_ua / 1000;
  }
  if (!strcmp(rail->chip, "ina238")) {
    const double current_ma = 20000 / rail->shunt_uohm;  // one step with the driver's SHUNT_CAL and range
    const long steps = lround(mw / (0.2 * current_ma));
    const uint8_t power[] = {(uint8_t)(steps >> 16), (uint8_t)(steps >> 8), (uint8_t)steps};
    set(rail, 0x04, lround(shunt_uv / 5));
    set(rail, 0x07, lround(ma / current_ma));
    set_block(rail, 0x08, power, sizeof(power));
    return (double)steps * 0.2 * current_ma;
  }
  if (!strcmp(rail->chip, "irps5401")) {
    // Of page 0 the low bytes alone, as a block: choosing a page would pull it from under the driver.
    const uint8_t out = (uint8_t)fmin(lround(mw * 32 / 1000), 255), in = (uint8_t)fmin(lround(mw / 0.9 * 32 / 1000), 255);
    const uint8_t amps = (uint8_t)fmin(lround(ma * 64 / 1000), 255), amps_in = (uint8_t)lround(mw / 0.9 * 64 / 12000);
    set_block(rail, 0x89, &amps_in, 1);
    set_block(rail, 0x8c, &amps, 1);
    set_block(rail, 0x97, &in, 1);
    set_block(rail, 0x96, &out, 1);
    return out * 1000 / 32.0;
  }
  show_pmic(mw);
  return mw;
}

static struct rail parse(const char* text) {
  struct rail rail = {.fd = -1};
  int bus, address;
  char path[32];
  if (sscanf(text, "%15[^:]:%d:%i:%u:%lf:%lf:%lf:%lf", rail.chip, &bus, &address, &rail.channel, &rail.shunt_uohm,
             &rail.mv, &rail.idle_mw, &rail.busy_mw) != 8) {
    errno = EINVAL;
    die(text);
  }
  if (strcmp(rail.chip, "pmic") != 0) {
    snprintf(path, sizeof(path), "/dev/i2c-%d", bus);
    rail.fd = open(path, O_RDWR | O_CLOEXEC);
    // FORCE: the drivers have the chips.
    if (rail.fd < 0 || ioctl(rail.fd, I2C_SLAVE_FORCE, address) < 0) die(path);
  }
  return rail;
}

// The share of the CPUs' time since the last call that was not idle; 0 at the first.
static double load(void) {
  static int fd = -1;
  static long long last_busy, last_all;
  char text[512];
  long long user, nice, system, idle, iowait, irq, softirq;
  if (fd < 0) fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);
  const ssize_t size = pread(fd, text, sizeof(text) - 1, 0);
  if (size <= 0) die("/proc/stat");
  text[size] = 0;
  sscanf(text, "cpu %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &iowait, &irq, &softirq);
  const long long busy = user + nice + system + irq + softirq, all = busy + idle + iowait;
  const double share = last_all && all > last_all ? (double)(busy - last_busy) / (double)(all - last_all) : 0;
  last_busy = busy;
  last_all = all;
  return share < 0 ? 0 : share > 1 ? 1 : share;
}

// Held by who moves the registers just now.
static int lock_file(void) {
  const int fd = open(LOCK, O_RDONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) die(LOCK);
  return fd;
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(int64_t at) {
  const struct timespec t = {at / 1000000000, at % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
}

static void play(const char* trace, const char* log, double seconds, const struct rail* rail) {
  FILE *from = fopen(trace, "r"), *to = fopen(log, "w");
  if (!from) die(trace);
  if (!to) die(log);
  size_t count = 0, room = 1024;
  struct point {
    int64_t t_ns;
    double mw;
  }* points = malloc(room * sizeof(*points));
  while (fscanf(from, "%lld %lf", (long long*)&points[count].t_ns, &points[count].mw) == 2) {
    if (++count == room) points = realloc(points, (room *= 2) * sizeof(*points));
  }
  // The last line says when it begins again.
  if (count < 2) {
    errno = EINVAL;
    die(trace);
  }
  const int64_t begun = now_ns(), end = begun + (int64_t)(seconds * 1e9);
  for (int64_t round = begun; round < end; round += points[count - 1].t_ns) {
    for (size_t i = 0; i + 1 < count && round + points[i].t_ns < end; ++i) {
      sleep_until(round + points[i].t_ns);
      const int64_t before = now_ns();
      const double mw = show(rail, points[i].mw);
      fprintf(to, "%lld %.3f\n", (long long)(before + now_ns()) / 2, mw);
    }
  }
  sleep_until(end);
  show(rail, rail->idle_mw);
  fprintf(to, "%lld %.3f\n", (long long)now_ns(), rail->idle_mw);
  fclose(to);
}

int main(int argc, char** argv) {
  struct rail rails[RAILS];
  const char* mode = argc > 1 ? argv[1] : "";
  const int first = !strcmp(mode, "once") ? 2 : !strcmp(mode, "load") ? 3 : !strcmp(mode, "play") ? 5 : argc;
  const int count = argc - first;
  if (count < 1 || count > RAILS || (first == 5 && count != 1)) {
    fputs("usage: power once RAIL... | load HZ RAIL... | play TRACE LOG SECONDS RAIL\n", stderr);
    return 2;
  }
  for (int i = 0; i < count; ++i) rails[i] = parse(argv[first + i]);
  const int lock = lock_file();
  if (first == 5) {
    flock(lock, LOCK_EX);
    play(argv[2], argv[3], atof(argv[4]), rails);
    return 0;
  }
  if (first == 2) {
    for (int i = 0; i < count; ++i) {
      identify(&rails[i]);
      show(&rails[i], rails[i].idle_mw);
    }
    return 0;
  }
  const double hz = atof(argv[2]);
  if (!(hz > 0 && hz <= 1000)) return 2;
  const int64_t period = (int64_t)(1e9 / hz);
  for (int64_t next = now_ns();; next += period) {
    const double share = load();
    flock(lock, LOCK_EX);
    for (int i = 0; i < count; ++i) show(&rails[i], rails[i].idle_mw + (rails[i].busy_mw - rails[i].idle_mw) * share);
    flock(lock, LOCK_UN);
    // After a snapshot was loaded or the machine was stopped, time has gone on: go on from there.
    if (next + period < now_ns()) next = now_ns();
    sleep_until(next + period);
  }
}
