//! Pages of a list: a limit and an opaque cursor that says after which row the next page begins. The cursor is the
//! sort key of the last row shown, so rows that come or go meanwhile neither repeat nor hide others.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Rows a page has when nobody asks.
pub const DEFAULT_LIMIT: usize = 100;
/// Rows a page has at most.
pub const MAX_LIMIT: usize = 1000;

/// What is wrong with a page request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Out of range.
    #[error("limit is a number from 1 to {MAX_LIMIT}")]
    Limit,
    /// Not one of ours.
    #[error("this cursor was not made by this list; start again without one")]
    Cursor,
}

/// Which rows are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// At most this many, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Only rows after this one.
    pub after: Option<Position>,
}

/// A row's place in a list that is sorted newest first, then by name descending.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// Time of the row, microseconds since 1970 UTC.
    pub time_us: i64,
    /// Its name.
    pub name: String,
}

impl Position {
    /// The opaque text a client sends back.
    pub fn to_cursor(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}", self.time_us, self.name))
    }

    /// Reads a cursor.
    pub fn from_cursor(text: &str) -> Result<Self, PageError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| PageError::Cursor)?;
        let text = String::from_utf8(bytes).map_err(|_| PageError::Cursor)?;
        let (time_us, name) = text.split_once('/').ok_or(PageError::Cursor)?;
        if name.chars().any(char::is_control) {
            return Err(PageError::Cursor);
        }
        Ok(Self { time_us: time_us.parse().map_err(|_| PageError::Cursor)?, name: name.to_owned() })
    }
}

impl PageRequest {
    /// Reads the two query fields as clients send them.
    pub fn parse(limit: Option<&str>, cursor: Option<&str>) -> Result<Self, PageError> {
        let limit = match limit {
            None => DEFAULT_LIMIT,
            Some(text) => {
                text.parse().ok().filter(|n| (1..=MAX_LIMIT).contains(n)).ok_or(PageError::Limit)?
            }
        };
        Ok(Self { limit, after: cursor.map(Position::from_cursor).transpose()? })
    }

    /// Cuts the page out of `rows`, which are sorted newest first by `position`. Returns the rows and the cursor of
    /// the next page, if there is one.
    pub fn cut<T>(&self, rows: Vec<T>, position: impl Fn(&T) -> Position) -> (Vec<T>, Option<String>) {
        let start = match &self.after {
            None => 0,
            Some(after) => rows.partition_point(|row| position(row) >= *after),
        };
        let more = rows.len() > start + self.limit;
        let page: Vec<T> = rows.into_iter().skip(start).take(self.limit).collect();
        let next = if more { page.last().map(|row| position(row).to_cursor()) } else { None };
        (page, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: &i64) -> Position {
        Position { time_us: *n, name: format!("r{n}") }
    }

    #[test]
    fn pages_cover_everything_once() {
        let rows: Vec<i64> = (0..25).rev().collect();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = PageRequest::parse(Some("10"), cursor.as_deref()).unwrap();
            let (part, next) = page.cut(rows.clone(), at);
            seen.extend(part);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, rows);
    }

    #[test]
    fn a_row_that_went_away_does_not_break_the_cursor() {
        let page = PageRequest { limit: 2, after: Some(at(&3)) };
        assert_eq!(page.cut(vec![5, 4, 2, 1], at).0, vec![2, 1]);
    }

    #[test]
    fn mistakes_are_told() {
        for bad in ["0", "1001", "-1", "x", ""] {
            assert_eq!(PageRequest::parse(Some(bad), None), Err(PageError::Limit), "{bad}");
        }
        assert_eq!(PageRequest::parse(None, Some("%%%")), Err(PageError::Cursor));
        assert_eq!(PageRequest::parse(None, Some("AAAA")), Err(PageError::Cursor));
        let nul = Position { time_us: 0, name: "a\0".into() }.to_cursor();
        assert_eq!(PageRequest::parse(None, Some(&nul)), Err(PageError::Cursor));
    }
}
