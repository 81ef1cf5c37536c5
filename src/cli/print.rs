//! Writing to the terminal or a pipe.
//!
//! Apart because `println!` panics when the reader of a pipe has gone; everything here returns that as an error. Colour
//! is left to clap, which knows `NO_COLOR`; the commands themselves use none.

use std::fmt;
use std::io::{self, Write as _};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Outcome;

/// Text with one line break at its end.
pub(super) fn text(text: &str) -> anyhow::Result<Outcome> {
    line(text.trim_end())?;
    Ok(Outcome::Fine)
}

/// One line.
pub(super) fn line(line: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// One JSON value, indented, for commands that answer with one.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// A message that is not the answer: errors and remarks. It goes to stderr; nobody can be told if that is gone.
pub(super) fn complain(message: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "recording-gateway: {message}");
}

/// Rows under a head, each column as wide as its widest cell; the last is not padded.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: [usize; N] =
        std::array::from_fn(|i| all().map(|row| row[i].chars().count()).max().unwrap_or_default());
    let mut out = io::stdout().lock();
    for row in all() {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(widths) {
            text += &format!("{:<width$}  ", visible(cell));
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// Names come from others: what a terminal would take for a command is shown as `?`.
pub(super) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes for people, like `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A bar for this many bytes on stderr; indicatif shows none where stderr is no terminal.
pub(super) fn bytes_bar(length: u64) -> ProgressBar {
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
