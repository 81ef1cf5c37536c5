//! Every scripted fault does what it says, and stops when the fake does.
