//! The OpenAPI document.

/// The document as JSON text.
pub fn document() -> String {
    r#"{"openapi":"3.1.0"}"#.into()
}
