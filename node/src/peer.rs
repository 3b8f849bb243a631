//! Other nodes: by what they know one another, and which of them is asked.

pub mod secret;

/// Whether a response that is not here is asked of other nodes before the origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    Off,
    /// Of those that answer fastest, if they hold it.
    #[default]
    Nearest,
    /// Of the one node that asks the origin for all.
    Shield,
}
