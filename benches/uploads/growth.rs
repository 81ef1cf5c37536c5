//! How figures grow with how much there is: a table whose columns are sizes, for people, as JSON, and for the picture.
//!
//! Apart from the table of ratios, which compares rounds of one size. Nothing here measures.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::table::{Spread, number};

/// A table of figures by size.
pub struct Growth {
    /// What the picture and the JSON know it by.
    pub name: &'static str,
    /// What stands above the lines.
    title: &'static str,
    columns: Vec<Column>,
    lines: Vec<Line>,
}

struct Column {
    label: String,
    /// Its place on the axis; `None` for one that is no size of its own.
    at: Option<f64>,
}

struct Line {
    what: &'static str,
    unit: &'static str,
    /// By column.
    figures: Vec<Option<Spread>>,
}

/// A point of a curve.
pub struct Point<'a> {
    /// The size.
    pub at: f64,
    /// The size in words.
    pub label: &'a str,
    /// The figure's median.
    pub value: f64,
}

impl Growth {
    /// Without columns and lines.
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title, columns: Vec::new(), lines: Vec::new() }
    }

    /// Begins a column: what is added next stands in it.
    pub fn column(&mut self, label: String, at: Option<f64>) {
        self.columns.push(Column { label, at });
    }

    /// A figure in the last column.
    pub fn add(&mut self, what: &'static str, unit: &'static str, figure: Spread) {
        let line = match self.lines.iter().position(|line| line.what == what) {
            Some(line) => line,
            None => {
                self.lines.push(Line { what, unit, figures: Vec::new() });
                self.lines.len() - 1
            }
        };
        let figures = &mut self.lines[line].figures;
        figures.resize_with(self.columns.len(), || None);
        figures[self.columns.len() - 1] = Some(figure);
    }

    /// The same for a single figure.
    pub fn add_one(&mut self, what: &'static str, unit: &'static str, figure: f64) {
        self.add(what, unit, Spread::of(&[figure]).expect("there is one"));
    }

    /// The table, in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("| {} |", self.title);
        for Column { label, .. } in &self.columns {
            let _ = write!(out, " {label} |");
        }
        let _ = write!(out, "\n| --- |{}", " --- |".repeat(self.columns.len()));
        for Line { what, unit, figures } in &self.lines {
            let _ = write!(out, "\n| {what}, {unit} |");
            for column in 0..self.columns.len() {
                let figure = figures.get(column).copied().flatten();
                let _ = write!(out, " {} |", figure.map_or(String::new(), |figure| number(figure.median)));
            }
        }
        out + "\n"
    }

    /// With every column's spread.
    pub fn json(&self) -> Value {
        let line = |Line { what, unit, figures }: &Line| {
            let figures: Value = figures.iter().map(|figure| figure.map(Spread::json)).collect();
            json!({"what": what, "unit": unit, "figures": figures})
        };
        json!({
            "name": self.name, "title": self.title,
            "columns": self.columns.iter().map(|column| &column.label).collect::<Vec<_>>(),
            "lines": self.lines.iter().map(line).collect::<Value>(),
        })
    }

    /// A line's figures from the least size to the most.
    pub fn curve(&self, what: &str) -> Vec<Point<'_>> {
        let Some(line) = self.lines.iter().find(|line| line.what == what) else { return Vec::new() };
        let points = self.columns.iter().zip(&line.figures);
        let of = points.filter_map(|(Column { label, at }, figure)| {
            Some(Point { at: (*at)?, label, value: figure.as_ref()?.median })
        });
        of.collect()
    }
}

/// A number with its thousands apart.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
