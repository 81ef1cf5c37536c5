//! The binary: parse the command line, run the command.

fn main() {}
