//! Limits and labels that both ends of the wire keep: the limits of its messages, and the labels
//! that are hashed or signed before a sealed file's parts. The .proto files say the same in words.

/// Lines in one message of an import, and in one chunk of a sealed file.
pub const IMPORT_LINES_MAX: usize = 500;

/// Items on one page of a list.
pub const PAGE_MAX: u32 = 1_000;

/// Bytes of a message, either way, unless the server's settings say otherwise.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Labels and limits of sealed import files.
pub mod sealed {
    /// Signed before a header's body.
    pub const HEADER_LABEL: &[u8] = b"ami.kms/sealed-import/2/header";
    /// Signed before a chunk.
    pub const CHUNK_LABEL: &[u8] = b"ami.kms/sealed-import/2/chunk";
    /// Hashed before what a proof states.
    pub const PROOF_LABEL: &[u8] = b"ami.kms/sealed-import/2/proof";
    /// Policies that a header lists.
    pub const POLICIES_MAX: usize = 8;
    /// Bytes of a header's body. It is decoded before its signature is verified, which needs its signer's name.
    pub const HEADER_BYTES_MAX: usize = 16 << 10;
}
