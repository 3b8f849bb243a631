//! Temporary folders.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that is removed with everything in it when this is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

static MADE: AtomicU32 = AtomicU32::new(0);

impl Folder {
    /// # Panics
    /// When it cannot be made.
    #[expect(clippy::new_without_default, reason = "it makes something on disk")]
    pub fn new() -> Folder {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("caje-tests-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("make a temporary folder");
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind lies in the system's temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
