//! The faults that a gateway has to survive.
