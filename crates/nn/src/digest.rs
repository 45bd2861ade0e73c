//! Content hashes: SHA-256 as hexadecimal text.

use amscript_base::context::Context;
use amscript_base::{file, progress};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// The hash of bytes at hand.
pub fn hash(bytes: &[u8]) -> String {
    text(Sha256::digest(bytes).as_slice())
}

/// The hash of a file, read in pieces, which progress bars count.
pub fn hash_file(path: &Path) -> std::io::Result<String> {
    let (mut file, mut digest, mut piece) = (file::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(text(digest.finalize().as_slice())),
            n => {
                digest.update(&piece[..n]);
                progress::bytes(n as u64);
                Context::current().interrupt.check().map_err(std::io::Error::other)?;
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_the_standard_example() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert!(hash(b"abc").starts_with("ba7816bf8f01cfea"));
        assert_eq!(hash_file(file.path()).unwrap(), hash(b"abc"));
    }
}
