//! The thread that reads: pages of what the manifest has and the disk lacks, with what is known of each attempt.
//!
//! All of it blocks, so it has a thread of its own; it does nothing but what it is asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::attempts::{Book, Digest};
use crate::manifest::{Covered, Cursor, Filter, Manifest, Reader};
use crate::store::{Store, be_gentle};
use crate::workers::limits::Attempts;

/// Rows of a page.
pub const PAGE: usize = 256;

pub struct Page {
    pub items: Vec<(Covered, Digest, Option<Attempts>)>,
    pub next: Option<Cursor>,
    /// How many are lacking in all, if it was asked for.
    pub lacking: Option<u64>,
    /// How long it took.
    pub took: Duration,
}

pub enum Ask {
    /// From now on of this manifest.
    Open(Option<Manifest>),
    Page {
        filter: Filter,
        after: Cursor,
        with_count: bool,
        answer: oneshot::Sender<Result<Page, String>>,
    },
    /// What is known of attempts: `None` for nothing.
    Note(Digest, Option<Attempts>),
    ForgetOld(u64),
}

/// The other end; the thread ends with it.
pub struct Walker(mpsc::Sender<Ask>);

impl Walker {
    pub fn start(store: Store, book: PathBuf) -> io::Result<(Walker, thread::JoinHandle<()>)> {
        let (sender, asked) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("populate-walk".into())
            .spawn(move || {
                be_gentle();
                run(&asked, &store, &book);
            })?;
        Ok((Walker(sender), thread))
    }

    pub fn ask(&self, ask: Ask) {
        // Who waits for an answer learns of a thread that has ended by that.
        let _ = self.0.send(ask);
    }

    pub fn page(
        &self,
        filter: Filter,
        after: Cursor,
        with_count: bool,
    ) -> oneshot::Receiver<Result<Page, String>> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Page {
            filter,
            after,
            with_count,
            answer,
        });
        answered
    }
}

fn run(asked: &mpsc::Receiver<Ask>, store: &Store, path: &Path) {
    let mut book: Option<Book> = None;
    let mut manifest: Option<Manifest> = None;
    let mut reader: Option<Reader> = None;
    while let Ok(ask) = asked.recv() {
        match ask {
            Ask::Open(opened) => {
                manifest = opened;
                reader = None;
                if manifest.is_some() && book.is_none() {
                    // Only now its folder is there.
                    book = Some(Book::open(path));
                }
            }
            Ask::Page {
                filter,
                after,
                with_count,
                answer,
            } => {
                let began = Instant::now();
                let open = || -> rusqlite::Result<Option<Reader>> {
                    let (Some(manifest), Some(index)) = (&manifest, store.index_path()) else {
                        return Ok(None);
                    };
                    let mut reader = manifest.reader()?;
                    reader.attach_index(&index)?;
                    Ok(Some(reader))
                };
                let mut read = || -> rusqlite::Result<Option<Page>> {
                    if reader.is_none() {
                        reader = open()?;
                    }
                    let (Some(reader), Some(book)) = (&reader, &book) else {
                        return Ok(None);
                    };
                    page(reader, book, &filter, &after, with_count).map(Some)
                };
                let page = match read() {
                    Ok(Some(page)) => Ok(Page {
                        took: began.elapsed(),
                        ..page
                    }),
                    Ok(None) => Err("there is no manifest, or no disk".to_owned()),
                    Err(error) => {
                        // Perhaps another file by now.
                        reader = None;
                        Err(error.to_string())
                    }
                };
                let _ = answer.send(page);
            }
            Ask::Note(digest, attempts) => {
                told(
                    book.as_ref()
                        .map(|book| book.set(&digest, attempts.as_ref())),
                );
            }
            Ask::ForgetOld(now_ms) => told(book.as_ref().map(|book| book.forget_old(now_ms))),
        }
    }
}

fn told(written: Option<rusqlite::Result<()>>) {
    if let Some(Err(error)) = written {
        tracing::warn!(%error, "a failed attempt is not remembered");
    }
}

fn page(
    reader: &Reader,
    book: &Book,
    filter: &Filter,
    after: &Cursor,
    with_count: bool,
) -> rusqlite::Result<Page> {
    let list = reader.lacking(filter, after, PAGE)?;
    let lacking = match (with_count, &list.next) {
        (false, _) => None,
        (true, None) => Some(list.items.len() as u64),
        (true, Some(_)) => Some(reader.count_lacking(filter)?),
    };
    let known = |covered: Covered| {
        let digest = covered.listed.resource.id.digest();
        Ok((covered, digest, book.of(&digest)?))
    };
    Ok(Page {
        items: list
            .items
            .into_iter()
            .map(known)
            .collect::<rusqlite::Result<_>>()?,
        next: list.next,
        lacking,
        took: Duration::ZERO,
    })
}
