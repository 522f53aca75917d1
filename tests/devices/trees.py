"""
How the kernel shows the power sensors of real boards: file -> what it says.

From the drivers' sources and documentation, and from guests in which the real drivers ran on stub chips; labels and
shunts from the boards' device trees.
"""

from __future__ import annotations

HWMON = "sys/class/hwmon"
IIO = "sys/bus/iio/devices"


Three = tuple[int, int, int]


def ina3221(
    number: int,
    labels: tuple[str, str, str],
    shunt_uohm: int,
    bus_mv: Three,
    ma: Three,
    enabled: Three = (1, 1, 1),
    **files: str,
) -> dict[str, str]:
    """One INA3221 by the mainline driver.  in4..in6 are shunt voltages in uV, in7 and curr4 the sums."""
    shunt_uv = [i * shunt_uohm // 1000 for i in ma]
    found = {"name": "ina3221", "update_interval": "7", "samples": "1"}
    for n in range(3):
        found[f"in{n + 1}_enable"] = str(enabled[n])
        found[f"in{n + 1}_input"] = str(bus_mv[n])
        found[f"curr{n + 1}_input"] = str(ma[n])
        found[f"in{n + 4}_input"] = str(shunt_uv[n])
        found[f"shunt{n + 1}_resistor"] = str(shunt_uohm)
        if labels[n]:
            found[f"in{n + 1}_label"] = labels[n]
    found |= {"in7_label": "sum of shunt voltages", "in7_input": str(sum(shunt_uv)), "curr4_input": str(sum(ma))}
    return folder(f"{HWMON}/hwmon{number}", {**found, **files})


def folder(place: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{place}/{name}": f"{text}\n" for name, text in files.items()}


ORIN_NX = ina3221(1, ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 5000, (5000, 4992, 5008), (800, 144, 200))

# No line feeds the whole module.  Of the second chip one channel is in use.
AGX_ORIN = {
    **ina3221(1, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 2000, (19000, 19000, 5000), (400, 100, 900)),
    **ina3221(2, ("", "VDDQ_VDD2_1V8AO", ""), 2000, (0, 5000, 0), (0, 80, 0), enabled=(0, 1, 0)),
}

AGX_XAVIER = {
    **ina3221(1, ("GPU", "CPU", "SOC"), 5000, (19000,) * 3, (100, 50, 60)),
    **ina3221(2, ("CV", "VDDRQ", "SYS5V"), 5000, (19000, 19000, 5000), (10, 20, 300)),
}

# Linux 4.9 of JetPack 4, driver ina3221x: IIO, with power ready in mW.
NANO_JP4 = {
    **folder("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", {
        "name": "ina3221x",
        "rail_name_0": "POM_5V_IN", "in_voltage0_input": "5080", "in_current0_input": "496", "in_power0_input": "2519",
        "rail_name_1": "POM_5V_GPU", "in_voltage1_input": "5072", "in_current1_input": "40", "in_power1_input": "202",
        "rail_name_2": "POM_5V_CPU", "in_voltage2_input": "5072", "in_current2_input": "160", "in_power2_input": "811",
    }),
    # the same chip in IIO's own folder, under a name that is not the one of ina2xx-adc
    **folder(f"{IIO}/iio:device0", {"name": "ina3221x", "in_power0_input": "2519"}),
}  # fmt: skip

TX2_JP4 = folder("sys/bus/i2c/drivers/ina3221x/0-0041/iio_device", {
    "rail_name_0": "VDD_IN", "in_power0_input": "4560",
    "rail_name_1": "NC", "in_power1_input": "0",
    "rail_name_2": "VDD_DDR", "in_power2_input": "1234",
})  # fmt: skip

# An INA226 HAT on 10 mOhm by the native driver: 16 averages of 2.2 ms.
INA226 = folder(f"{HWMON}/hwmon0", {
    "name": "ina226", "in0_input": "8", "in1_input": "5000", "curr1_input": "800", "power1_input": "4000000",
    "shunt_resistor": "10000", "update_interval": "35",
})  # fmt: skip

# It does not tell its interval, as it does not average.
INA219 = folder(f"{HWMON}/hwmon0", {
    "name": "ina219", "in0_input": "8", "in1_input": "5000", "curr1_input": "800", "power1_input": "4000000",
    "shunt_resistor": "100000",
})  # fmt: skip

# ZCU104 revision C: an INA226 behind iio-hwmon, whose in1 is the shunt; and two regulators, whose FMC output is off.
ZCU104 = {
    **folder(f"{HWMON}/hwmon0", {
        "name": "ina226", "device/of_node/compatible": "iio-hwmon",
        "in1_input": "5", "in2_input": "12000", "curr1_input": "1000", "power1_input": "12000000",
    }),
    **folder(f"{IIO}/iio:device0", {
        "name": "ina226", "in_power2_raw": "480", "in_power2_scale": "25.000000",
        "in_voltage1_raw": "9600", "in_voltage1_scale": "1.250000",
    }),
    **folder(f"{HWMON}/hwmon1", {
        "name": "irps5401",
        "in1_label": "vin", "in1_input": "12000", "curr1_label": "iin", "curr1_input": "354",
        "power1_label": "pin", "power1_input": "4250000",
        "in2_label": "vout1", "in2_input": "850", "curr2_label": "iout1", "curr2_input": "4700",
        "power2_label": "pout1", "power2_input": "4000000",
    }),
    **folder(f"{HWMON}/hwmon2", {
        "name": "irps5401",
        "in2_label": "vout3", "in2_input": "156", "curr2_label": "iout3", "curr2_input": "10187",
        "power2_label": "pout3", "power2_input": "1589000",
    }),
}  # fmt: skip

# KV260: an INA260, which has its shunt inside, behind iio-hwmon; there the chip is called after its place.
KV260 = folder(f"{HWMON}/hwmon3", {
    "name": "ina260_u14", "device/of_node/compatible": "iio-hwmon",
    "in1_input": "5012", "curr1_input": "1180", "power1_input": "5910000",
})  # fmt: skip

# ina2xx-adc: raw times scale is mW; 4 averages of two conversions of 1.1 ms.
INA226_ADC = folder(f"{IIO}/iio:device0", {
    "name": "ina226", "in_power2_raw": "640", "in_power2_scale": "6.250000",
    "in_voltage0_integration_time": "0.001100", "in_voltage1_integration_time": "0.001100",
    "in_oversampling_ratio": "4", "in_shunt_resistor": "0.010000",
    "in_voltage1_raw": "4000", "in_voltage1_scale": "1.250000",
})  # fmt: skip

PI5 = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "dev/vcio": ""}

# Currents in one order and voltages in another; EXT5V and BATT have no current.
PMIC_ANSWER = """\
 3V7_WL_SW_A current(0)=0.00585561A
   3V3_SYS_A current(1)=0.08490636A
  VDD_CORE_A current(7)=0.94674000A
 3V7_WL_SW_V volt(8)=3.70726900V
  VDD_CORE_V volt(15)=0.72032540V
   3V3_SYS_V volt(9)=3.31282700V
     EXT5V_V volt(24)=5.10908000V
      BATT_V volt(25)=0.00000000V
"""
