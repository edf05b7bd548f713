//! One NBD client: drives the state machines of `quarry_volume::nbd` over a socket.
//!
//! Invariant: a command that was begun is carried out to its end, whatever becomes of its connection: one that does not end at once
//! is a task. Only reads, which change nothing, may end with it: they are part of the connection's own task, so that nobody else is
//! woken for them.
//! Invariant: while a client reads none of its replies, what is kept for it is bounded, and nobody else waits for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quarry_engine::disk::Lane;
use quarry_engine::io::Linger;
use quarry_volume::nbd::limits::MAX_OWED;
use quarry_volume::nbd::{
    Action, Command, Demand, Ending, Handshake, OptionError, Outbox, Outcome, Purpose, Session, Terms,
    Ticket, Tls,
};
use quarry_volume::store::{Attached, Device};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::admission::{Admission, Place};
use super::exports::{Exports, Use};
use super::linger;
use super::listener::told;
use super::only_read;
use super::pace::Turn;

/// A client must have agreed within this.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// A client that takes nothing for so long keeps no node from stopping.
const PARTING: Duration = Duration::from_secs(5);
/// Bytes that one read takes at most, but for payloads.
const READ_BYTES: usize = 64 << 10;
/// From this size on the rest of a payload is read to where it stays.
const STRAIGHT: usize = 16 << 10;
/// Bytes that one read takes behind a payload that is larger than what it would take: most likely another one follows, of which little
/// is to be read to where it does not stay.
const FEW_BYTES: usize = 4 << 10;

/// A socket, with TLS on it or not.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// What all connections of a listener have in common.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) exports: Arc<Exports>,
    pub(super) tls: Tls,
    /// As the files are now.
    pub(super) acceptor: Option<watch::Receiver<TlsAcceptor>>,
    pub(super) admission: Arc<Admission>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// A client that has agreed.
struct Agreed {
    wire: Box<dyn Wire>,
    session: Session,
    device: Attached,
    /// What was read behind the handshake.
    input: BytesMut,
    held: Use,
    place: Place,
}

/// Serves a client until one side ends it.
pub(super) async fn serve(wire: Box<dyn Wire>, mut host: Host) -> io::Result<()> {
    let mut stopped = host.stopped.clone();
    let mut shown_out = host.admission.come();
    let agreed = tokio::select! {
        agreed = tokio::time::timeout(HANDSHAKE, agree(wire, &mut host)) => agreed,
        () = told(&mut stopped) => return Ok(()),
        _ = &mut shown_out => {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client has not agreed, and others came"));
        }
    };
    drop(shown_out);
    match agreed {
        Ok(Ok(Some(agreed))) => transmit(agreed, stopped).await,
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client has not agreed in time")),
    }
}

/// The handshake; `None`: it ended without a session.
async fn agree(mut wire: Box<dyn Wire>, host: &mut Host) -> io::Result<Option<Agreed>> {
    let mut handshake = Handshake::new(host.tls);
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let (mut opened, mut place) = (None, None);
    loop {
        let (taken, mut demand) = handshake.feed(&input);
        input.advance(taken);
        while let Some(demanded) = demand {
            demand = match demanded {
                Demand::List => handshake.list(&host.exports.list()),
                Demand::Find { name, purpose: Purpose::Look } => {
                    handshake.export(only_read::look(&host.exports, &name).await)
                }
                Demand::Find { name, purpose: Purpose::Enter } => {
                    place = place.or_else(|| host.admission.place());
                    if place.is_none() {
                        tracing::warn!(export = %name, "refuse an NBD client: as many have volumes as nbd.connections allows; raise it, or end some");
                        demand = handshake.export(Err(OptionError::Policy));
                        continue;
                    }
                    match only_read::open(&host.exports, &name).await {
                        Ok((export, device, held)) => {
                            let next = handshake.export(Ok(export));
                            // It may be refused all the same, for its sizes of blocks or TLS.
                            match &next {
                                Some(Demand::Enter(_)) => opened = Some((device, held)),
                                _ => place = None,
                            }
                            next
                        }
                        Err(error) => {
                            place = None;
                            handshake.export(Err(error))
                        }
                    }
                }
                Demand::StartTls => {
                    send(&mut wire, handshake.outbox()).await?;
                    let Some(acceptor) = host.acceptor.as_ref().map(|now| now.borrow().clone()) else {
                        return Ok(None);
                    };
                    if input.is_empty() {
                        wire = Box::new(acceptor.accept(wire).await?);
                    }
                    handshake.secured(input.len())
                }
                Demand::Enter(terms) => {
                    let (Some((device, held)), Some(place)) = (opened, place) else { return Ok(None) };
                    let session = enter(*terms, &mut handshake).with_memory(host.exports.memory());
                    return Ok(Some(Agreed { wire, session, device, input, held, place }));
                }
                Demand::Close(ending) => {
                    send(&mut wire, handshake.outbox()).await?;
                    let _gone = wire.shutdown().await;
                    if ending != Ending::Aborted {
                        tracing::debug!(%ending, "end an NBD handshake");
                    }
                    return Ok(None);
                }
            };
        }
        send(&mut wire, handshake.outbox()).await?;
        if wire.read_buf(&mut input).await? == 0 {
            return Ok(None);
        }
    }
}

fn enter(terms: Terms, handshake: &mut Handshake) -> Session {
    tracing::debug!(export = %terms.export.name, style = ?terms.style, tls = handshake.is_secure(), "serve NBD client");
    Session::new(terms, std::mem::take(handshake.outbox()))
}

async fn send(wire: &mut Box<dyn Wire>, outbox: &mut Outbox) -> io::Result<()> {
    while outbox.has_remaining() {
        wire.write_buf(outbox).await?;
    }
    wire.flush().await
}

type Reading = Pin<Box<dyn Future<Output = (Ticket, Outcome)> + Send>>;

/// Reads of a session, looked after by its task.
struct Reads {
    device: Device,
    lane: AsyncFd<Arc<Lane>>,
    open: FuturesUnordered<Reading>,
}

/// A session on its way.
struct Link {
    session: Session,
    device: Attached,
    turn: Arc<Turn>,
    /// `None`: the disk has no lanes.
    reads: Option<Reads>,
    input: BytesMut,
    /// What is being sent; replies that come meanwhile gather in the session.
    sending: Outbox,
    finished: mpsc::UnboundedSender<(Ticket, Outcome)>,
    /// Commands begun so far.
    begun: usize,
    /// The last one was a large write.
    large: bool,
}

async fn transmit(agreed: Agreed, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
    let Agreed { wire, session, device, input, held, place } = agreed;
    let (mut reader, mut writer) = tokio::io::split(wire);
    // As long as the session lets commands be open, which is not long.
    let (finished, mut outcomes) = mpsc::unbounded_channel();
    let turn = Arc::new(Turn::new(Arc::clone(held.pacer()), stopped.clone()));
    let reads = Reads::open(&device);
    let lane = reads.as_ref().map(|reads| Arc::clone(reads.lane.get_ref()));
    let sending = Outbox::default();
    let mut link = Link { session, device, turn, reads, input, sending, finished, begun: 0, large: false };
    let (mut leaving, mut unflushed, mut waits) = (None, false, Linger::default());
    let result = loop {
        let before = link.begun;
        if link.take_input() {
            break Ok(());
        }
        linger::took(&mut waits, link.begun - before);
        link.reads.iter().for_each(Reads::begun);
        if !link.sending.has_remaining() {
            link.sending = std::mem::take(link.session.outbox());
        }
        let sends = link.sending.has_remaining() || unflushed;
        let idle = link.session.open() == 0 && !sends;
        if idle && (leaving.is_some() || link.session.is_over()) {
            break Ok(());
        }
        let reads = leaving.is_none() && link.session.takes_input() && link.sending.remaining() < MAX_OWED;
        let (alone, began) = (link.waits_for_few(), Instant::now());
        // What there is to say is said first, and nobody looks for what is there.
        tokio::select! {
            biased;
            () = told(&mut stopped), if leaving.is_none() => leaving = Some(Instant::now()),
            written = write(&mut writer, &mut link.sending, &mut unflushed), if sends => match written {
                Ok(()) => leaving = leaving.map(|_| Instant::now()),
                Err(error) => break Err(error),
            },
            () = parted(leaving), if sends => {
                break Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no replies, and the node stops"));
            }
            Some((ticket, outcome)) = outcomes.recv() => {
                link.session.finish(ticket, outcome);
                while let Ok((ticket, outcome)) = outcomes.try_recv() {
                    link.session.finish(ticket, outcome);
                }
            }
            (ticket, outcome) = Reads::next(&mut link.reads) => {
                link.session.finish(ticket, outcome);
                link.take_reads();
            }
            read = read(&mut reader, &mut link.session, &mut link.input, link.large), if reads => match read {
                // The client is gone; there is nobody to tell the rest.
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            },
            () = linger::look(&waits, began, lane.as_deref()), if alone => link.take_reads(),
        }
        if !sends {
            waits.waited(began.elapsed());
        }
    };
    // First reads: nobody else may wait for what they hold while this client takes its time.
    if let Some(reads) = link.reads.take() {
        reads.end().await;
    }
    // Commands that are open hold the volume until they end.
    drop(link.finished);
    while outcomes.recv().await.is_some() {}
    drop((held, place));
    // A client that sees the end of the connection finds the volume unused, and a place. One that takes nothing sees it end all the same.
    let _gone = tokio::time::timeout(PARTING, writer.shutdown()).await;
    result
}

/// Ends when a client of a node that stops has taken nothing for as long as it may.
async fn parted(leaving: Option<Instant>) {
    match leaving {
        Some(since) => tokio::time::sleep_until((since + PARTING).into()).await,
        None => std::future::pending().await,
    }
}

/// Sends some. TLS keeps the end of what it took until it is flushed, which may be broken off as well: `unflushed` remembers that it is owed.
async fn write(
    writer: &mut WriteHalf<Box<dyn Wire>>,
    sending: &mut Outbox,
    unflushed: &mut bool,
) -> io::Result<()> {
    if sending.has_remaining() {
        *unflushed = true;
        writer.write_buf(sending).await?;
        if sending.has_remaining() {
            return Ok(());
        }
    }
    writer.flush().await?;
    *unflushed = false;
    Ok(())
}

async fn read(
    reader: &mut ReadHalf<Box<dyn Wire>>,
    session: &mut Session,
    input: &mut BytesMut,
    few: bool,
) -> io::Result<usize> {
    if let Some(mut room) = session.payload_room()
        && room.remaining_mut() >= STRAIGHT
    {
        return reader.read_buf(&mut room).await;
    }
    let most = if few { FEW_BYTES } else { READ_BYTES };
    input.reserve(most);
    reader.read_buf(&mut input.limit(most)).await
}

/// Begins what was asked for by reads that went on just now, each time that they are looked at; never ends.
async fn begin_rest(lane: &Lane) {
    std::future::poll_fn(|_| -> Poll<()> {
        lane.begin();
        Poll::Pending
    })
    .await;
}

impl Reads {
    #[expect(
        deprecated,
        reason = "a lane's descriptor is open as long as the lane is; `unsafe` is elsewhere"
    )]
    fn open(device: &Attached) -> Option<Self> {
        // Those with several members are read where their heads say.
        let Attached::Own(device) = device else { return None };
        let opened = device.laned().and_then(|laned| {
            let Some((device, lane)) = laned else { return Ok(None) };
            Ok(Some(Self { device, lane: AsyncFd::new(lane)?, open: FuturesUnordered::new() }))
        });
        opened.unwrap_or_else(|error| {
            tracing::debug!(%error, "open a lane to a disk: its thread reads");
            None
        })
    }

    /// Begins a read; what it came to, if it ended at once.
    fn begin(&mut self, ticket: Ticket, command: Command, turn: Arc<Turn>) -> Option<(Ticket, Outcome)> {
        let device = self.device.clone();
        let mut reading: Reading = Box::pin(async move {
            turn.admit(&command).await;
            (ticket, device.carry_out(command).await)
        });
        match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => {
                self.open.push(reading);
                None
            }
        }
    }

    /// No more come before this thread waits: those that were begun go to the disk together.
    fn begun(&self) {
        self.lane.get_ref().begin();
    }

    /// The next read that ends; never, while none is open.
    async fn next(reads: &mut Option<Self>) -> (Ticket, Outcome) {
        let Some(Self { lane, open, .. }) = reads else { return std::future::pending().await };
        loop {
            tokio::select! {
                biased;
                Some(ended) = open.next() => return ended,
                // One that was held back, or needs a second record, reads now.
                () = begin_rest(lane.get_ref()), if !open.is_empty() => {}
                ready = lane.readable(), if !open.is_empty() => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        lane.get_ref().collect();
                    }
                    // The runtime ends, and with it all tasks.
                    Err(_) => return std::future::pending().await,
                },
                else => return std::future::pending().await,
            }
        }
    }

    /// Lets go of what is open, and waits until the kernel has as well.
    async fn end(self) {
        let Self { lane, open, .. } = self;
        drop(open);
        lane.get_ref().begin();
        while !lane.get_ref().is_idle() {
            let Ok(mut ready) = lane.readable().await else { return };
            ready.clear_ready();
            lane.get_ref().collect();
        }
    }
}

impl Link {
    /// No command is open at another thread, or it is all that the client waits for: a flush, as a rule.
    fn waits_for_few(&self) -> bool {
        self.session.open() <= self.reads.as_ref().map_or(0, |reads| reads.open.len()).max(1)
    }

    /// Begins a command. Most writes end at once; nobody need be woken for them.
    fn run(&mut self, ticket: Ticket, command: Command) {
        self.begun += 1;
        self.large = matches!(&command, Command::Write { data, .. } if data.len() > READ_BYTES);
        if let (Command::Read { .. }, Some(reads)) = (&command, &mut self.reads) {
            if let Some((ticket, outcome)) = reads.begin(ticket, command, Arc::clone(&self.turn)) {
                self.session.finish(ticket, outcome);
            }
            return;
        }
        let (device, turn, finished) = (self.device.clone(), Arc::clone(&self.turn), self.finished.clone());
        let mut outcome = Box::pin(async move {
            turn.admit(&command).await;
            device.carry_out(command).await
        });
        let mut context = Context::from_waker(Waker::noop());
        match outcome.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => self.session.finish(ticket, outcome),
            Poll::Pending => {
                tokio::spawn(async move {
                    // Nobody listens any more when the connection is gone.
                    let _gone = finished.send((ticket, outcome.await));
                });
            }
        }
    }

    /// Tells what reads came to that have ended.
    fn take_reads(&mut self) {
        while let Some((ticket, outcome)) = Reads::next(&mut self.reads).now_or_never() {
            self.session.finish(ticket, outcome);
        }
    }

    /// Takes what was read; true: the connection ends at once.
    fn take_input(&mut self) -> bool {
        loop {
            let (taken, action) = self.session.feed(&self.input);
            self.input.advance(taken);
            match action {
                Some(Action::Run(ticket, command)) => self.run(ticket, command),
                Some(Action::Disconnect) => {}
                Some(Action::Close(violation)) => {
                    tracing::debug!(%violation, "end an NBD session");
                    return true;
                }
                None => return false,
            }
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
