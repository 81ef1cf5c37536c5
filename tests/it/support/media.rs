//! Bytes that look like recordings.

/// `len` bytes that begin as a browser's WebM does and differ with `seed`.
pub fn webm(len: usize, seed: u64) -> Vec<u8> {
    const HEAD: [u8; 36] = [
        0x1a, 0x45, 0xdf, 0xa3, 0x9f, 0x42, 0x86, 0x81, 0x01, 0x42, 0xf7, 0x81, 0x01, 0x42, 0xf2, 0x81, 0x04,
        0x42, 0xf3, 0x81, 0x08, 0x42, 0x82, 0x84, b'w', b'e', b'b', b'm', 0x42, 0x87, 0x81, 0x04, 0x42, 0x85,
        0x81, 0x02,
    ];
    let mut bytes = HEAD.to_vec();
    // xorshift64*: no pattern, so a byte in the wrong place is seen.
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
