//! Where a name lies: its container and account, which clients make and delete, and what a DELETE may have meant.
//!
//! A container and an account are named by the PUT that made them: numbers of operations ascend, so what was made after an operation was
//! over has a greater one.
//!
//! Invariant: an operation without an answer takes effect only in what was made before its client was told nothing: a DELETE in the
//! container that it saw, a write in the one that its grant is for.
//! Invariant: nothing goes by itself but under an account that is marked deleted: its objects, then its container, then the mark.

use crate::store::model::{Cell, Op, OpId, Outcome};

/// What stands around a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place {
    account: Option<OpId>,
    /// The account is deleted, and not yet reaped.
    marked: bool,
    container: Option<OpId>,
}

/// What stands at a name, and around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Spot {
    pub(super) cell: Cell,
    pub(super) place: Place,
}

impl Place {
    /// Where nobody makes or deletes containers.
    pub(super) const LASTING: Self = Self { account: Some(0), marked: false, container: Some(0) };

    pub(super) fn stands(self) -> bool {
        self.container.is_some()
    }

    /// The PUT that made the container.
    pub(super) fn container(self) -> Option<OpId> {
        self.container
    }

    /// Whether something that was made before this number stands, for an operation to take effect in.
    pub(super) fn is_before(self, op: &Op, number: OpId) -> bool {
        let made = match op {
            Op::PutContainer { .. } => return true,
            Op::DeleteAccount { .. } => self.account,
            _ => self.container,
        };
        made.is_some_and(|made| made < number)
    }

    /// When a PUT of the container takes effect.
    pub(super) fn made(self, by: OpId) -> Option<Self> {
        let made =
            Self { account: self.account.or(Some(by)), container: self.container.or(Some(by)), ..self };
        (!self.marked).then_some(made)
    }
}

impl Spot {
    /// What a read says that sees this.
    pub(super) fn shown(self, op: &Op) -> Outcome {
        let Self { cell, place } = self;
        match op {
            Op::ListContainers { .. } if place.account.is_none() || place.marked => Outcome::NoAccount,
            _ if !place.stands() => Outcome::NoContainer,
            _ => Outcome::Version((cell.data != 0).then_some(cell)),
        }
    }

    /// The same of an eventual container: of a listing, which container it is of.
    pub(super) fn shown_loosely(self, op: &Op) -> Outcome {
        match (op, self.place.container) {
            (Op::List { .. }, Some(made)) => Outcome::Version(Some(Cell { data: made, meta: made })),
            _ => self.shown(op),
        }
    }

    /// What the reaper does next here, if the account is marked.
    pub(super) fn reaped(self) -> Option<Self> {
        let Self { cell, place } = self;
        if !place.marked {
            return None;
        }
        Some(if cell != Cell::default() {
            Self { cell: Cell::default(), place }
        } else if place.stands() {
            Self { cell, place: Place { container: None, ..place } }
        } else {
            Self::default()
        })
    }

    /// When a DELETE removes the container. Asked again because an answer was lost, it finds nothing where it removed something.
    pub(super) fn removals(self) -> [(Outcome, Self); 2] {
        self.gone(Place { container: None, ..self.place })
    }

    fn gone(self, place: Place) -> [(Outcome, Self); 2] {
        let next = Self { place, ..self };
        [(Outcome::Gone, next), (Outcome::Absent, next)]
    }

    /// All that a change of the container or account may say and leave behind.
    pub(super) fn changed(self, id: OpId, op: &Op) -> Vec<(Outcome, Self)> {
        let Self { cell, place } = self;
        match op {
            Op::PutContainer { .. } => match place.made(id) {
                None => vec![(Outcome::NoAccount, self)],
                Some(made) => vec![(Outcome::Made(!place.stands()), Self { cell, place: made })],
            },
            Op::DeleteContainer { .. } if place.stands() => {
                let mut all = vec![(Outcome::NotEmpty, self)];
                if cell == Cell::default() {
                    all.extend(self.removals());
                }
                all
            }
            Op::DeleteAccount { .. } if place.account.is_some() && !place.marked => {
                self.gone(Place { marked: true, ..place }).into()
            }
            _ => vec![(Outcome::Absent, self)],
        }
    }
}
