# NEVER RUN: no Vivado was at hand when this was written.  Makes a bitstream and its .hwh for PYNQ.
#
#   vivado -mode batch -source build.tcl -tclargs pynq-z2|zcu104 OUTPUT_FOLDER

lassign $argv board out
set here [file dirname [file normalize [info script]]]
array set parts {pynq-z2 xc7z020clg400-1 zcu104 xczu7ev-ffvc1156-2-e}
if {![info exists parts($board)] || $out eq ""} {
    error "usage: build.tcl [join [array names parts] |] OUTPUT_FOLDER"
}
file mkdir $out
create_project accelerator $out/project -part $parts($board) -force
add_files [glob $here/../*.sv] $here/overlay.v
create_bd_design system

# The processor: one port to the registers, one 64-bit port to memory, a clock of 100 MHz, an interrupt.
if {$board eq "pynq-z2"} {
    set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7 ps]
    apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \
        -config {make_external "FIXED_IO, DDR" Master Disable Slave Disable} $ps
    set_property -dict {
        CONFIG.PCW_USE_M_AXI_GP0 1 CONFIG.PCW_USE_S_AXI_HP0 1 CONFIG.PCW_S_AXI_HP0_DATA_WIDTH 64
        CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ 100
        CONFIG.PCW_USE_FABRIC_INTERRUPT 1 CONFIG.PCW_IRQ_F2P_INTR 1
    } $ps
    lassign {M_AXI_GP0 M_AXI_GP0_ACLK S_AXI_HP0 S_AXI_HP0_ACLK FCLK_CLK0 FCLK_RESET0_N IRQ_F2P} \
        to_registers to_registers_clock to_memory to_memory_clock clock resetn interrupt
} else {
    set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e ps]
    set_property -dict {
        CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__M_AXI_GP2 0
        CONFIG.PSU__USE__S_AXI_GP2 1 CONFIG.PSU__SAXIGP2__DATA_WIDTH 64
        CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ 100 CONFIG.PSU__USE__IRQ0 1
    } $ps
    lassign {M_AXI_HPM0_FPD maxihpm0_fpd_aclk S_AXI_HP0_FPD saxihp0_fpd_aclk pl_clk0 pl_resetn0 pl_ps_irq0} \
        to_registers to_registers_clock to_memory to_memory_clock clock resetn interrupt
}

# devices/backends/pynq.py looks for this name.
set core [create_bd_cell -type module -reference overlay accelerator_0]
set reset [create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset]
foreach {name from to} [list \
    control ps/$to_registers accelerator_0/s_axi \
    memory accelerator_0/m_axi ps/$to_memory] {
    # A SmartConnect also makes AXI3 of AXI4, which the PS7's ports want.
    set connect [create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $name]
    set_property CONFIG.NUM_SI 1 $connect
    connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $name/S00_AXI]
    connect_bd_intf_net [get_bd_intf_pins $name/M00_AXI] [get_bd_intf_pins $to]
}
connect_bd_net [get_bd_pins ps/$clock] [get_bd_pins ps/$to_registers_clock] [get_bd_pins ps/$to_memory_clock] \
    [get_bd_pins accelerator_0/clock] [get_bd_pins reset/slowest_sync_clk] [get_bd_pins control/aclk] \
    [get_bd_pins memory/aclk]
connect_bd_net [get_bd_pins ps/$resetn] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins accelerator_0/reset_n] \
    [get_bd_pins control/aresetn] [get_bd_pins memory/aresetn]
connect_bd_net [get_bd_pins accelerator_0/irq] [get_bd_pins ps/$interrupt]
assign_bd_address
validate_bd_design
save_bd_design

set top [make_wrapper -files [get_files system.bd] -top]
add_files -norecurse $top
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
open_run impl_1
report_timing_summary -file $out/timing.txt
report_utilization -hierarchical -file $out/utilization.txt
set slack [get_property SLACK [get_timing_paths]]
if {$slack < 0} { puts "WARNING: 100 MHz is missed by [expr {-$slack}] ns; see $out/timing.txt" }
file copy -force [glob $out/project/accelerator.runs/impl_1/*.bit] $out/accelerator.bit
file copy -force [lindex [glob $out/project/accelerator.gen/sources_1/bd/system/hw_handoff/*.hwh] 0] $out/accelerator.hwh
