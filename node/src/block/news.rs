//! What this node has not heard of yet: a volume or snapshot that another one made a moment ago.
//!
//! Invariant: nobody is told that there is no such volume, or no such snapshot, or that one is still being made, before the control group has said so.
//! Invariant: who asks for what is there costs the group nothing; all who ask a node for what is not are one question to it at a time.

use std::sync::Arc;

use quarry_volume::nbd::OptionError;
use quarry_volume::store::{VolumeError, is_name};

use super::exports::{Exports, volume_of};
use super::shared::{PAUSE, Shared, TRIES};
use crate::control::volumes::{RegisterError, Row};

/// What says that there is no such thing.
pub(super) trait NoSuch: From<RegisterError> {
    /// The volume that is none, or has no such snapshot. `asked`: what it was asked for by.
    fn of<'a>(&'a self, asked: &'a str) -> Option<&'a str>;
}

impl NoSuch for VolumeError {
    fn of<'a>(&'a self, _: &'a str) -> Option<&'a str> {
        match self {
            // That one is made may be old news, too.
            Self::NoVolume(name) | Self::NoSnapshot(name, _) | Self::BeingMade(name) => Some(name),
            _ => None,
        }
    }
}

impl From<RegisterError> for OptionError {
    fn from(_: RegisterError) -> Self {
        Self::Platform
    }
}

impl NoSuch for OptionError {
    fn of<'a>(&'a self, asked: &'a str) -> Option<&'a str> {
        (*self == Self::Unknown).then(|| volume_of(asked))
    }
}

impl Exports {
    /// Does something; where there is no such volume or snapshot, that is certain.
    pub(crate) async fn certainly<T, F>(&self, act: impl Fn() -> F) -> Result<T, VolumeError>
    where
        F: Future<Output = Result<T, VolumeError>>,
    {
        self.certainly_of("", act).await
    }

    /// The same, with what was asked for where its error does not say.
    pub(super) async fn certainly_of<T, E: NoSuch, F>(&self, asked: &str, act: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let Some(shared) = self.shared() else { return act().await };
        let mut certain = None;
        for _ in 0..TRIES {
            let done = act().await;
            let Err(error) = &done else { return done };
            let Some(name) = error.of(asked).filter(|name| is_name(name)) else { return done };
            let known = shared.register.known(name)?;
            // So it was before this was done again, and is still: that is what it has seen.
            if certain.as_ref() == Some(&known) {
                return done;
            }
            match shared.register.all_stand(known.clone()).await {
                Ok(()) => certain = Some(known),
                Err(RegisterError::Changed) => tokio::time::sleep(PAUSE).await,
                Err(away) => return Err(away.into()),
            }
        }
        Err(RegisterError::Changed.into())
    }

    /// Waits until this node knows of a volume, if there is one of this name.
    pub(crate) async fn hear_of(&self, name: &str) -> Result<(), VolumeError> {
        let none = || Err(VolumeError::NoVolume(name.to_owned()));
        let look = || std::future::ready(if self.has(name) { Ok(()) } else { none() });
        match self.certainly(look).await {
            Err(VolumeError::NoVolume(_)) => Ok(()),
            heard => heard,
        }
    }

    /// A volume with several members; that there is none of this name is certain.
    pub(crate) async fn several_surely(
        &self,
        name: &str,
    ) -> Result<Option<(&Arc<Shared>, Row)>, VolumeError> {
        self.hear_of(name).await?;
        Ok(self.several(name))
    }
}
