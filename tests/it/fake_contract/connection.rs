//! What single recorded answers cannot show: what the connection does, and requests that overlap.
