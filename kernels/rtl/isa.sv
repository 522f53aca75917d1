// What the modules say to each other: instructions as deploy/fpga/isa.py lays them out, the last word first, and steps.
package isa;
  // One layer; the Python class Conv says what the fields mean.
  typedef struct packed {
    logic signed [7:0] sum_most, sum_least, sum_zero_point;
    logic [1:0] unused;
    logic [4:0] sum_shift;
    logic sum_set;
    logic [15:0] residual_rows, residual_row;

    logic signed [7:0] most, least, zero_point, pad;
    logic [15:0] out_width, out_height;

    logic [15:0] out_plane, out_pitch, out_rows, out_row;

    logic [7:0] tile_columns, tile_rows;
    logic [15:0] width, weights, depth_steps;

    logic [15:0] taps, first_tap, in_rows, in_row;

    logic [15:0] position_tiles, channel_tiles;
    logic binarize, binary, nibbles, split, residual, maximum, diagonal, once;
    logic [15:0] wait_loads;
    logic [7:0] op;
  } conv_t;

  // The first three words of a LOAD or a STORE.
  typedef struct packed {
    logic [15:0] unused_2;
    logic [15:0] positions, rows, to;

    logic [7:0] unused_1;
    logic [23:0] beats;
    logic [31:0] offset;

    logic [35:0] unused_0;
    logic [1:0] base, memory;
    logic [23:0] head;
  } load_t;

  // What an engine is told to move.
  typedef struct packed {
    logic [2:0] memory;  // as isa.Memory; PROGRAM besides
    logic [31:0] address;
    logic [23:0] beats;
    logic [15:0] to, rows, positions;
  } move_t;
  localparam logic [2:0] PROGRAM = 3'd4;

  // What the array does in one cycle.
  typedef struct packed {
    logic valid;
    logic parameters;  // the words of parameters, not of weights
    logic [1:0] parameter_word;  // which of them
    logic first, last;  // of a tile
    logic tile_first;  // of a channel tile's positions
    logic channel_first;  // in the first channel tile
    logic plain;  // read the position itself, not a tap
    logic half;  // the upper half of the channels that lie in a word
    logic nibbles, upper_nibbles;  // weights of 4 bits; those in the upper half of the word
    logic [15:0] tap, row, base, weight;  // base: position of lane 0
  } step_t;
endpackage
