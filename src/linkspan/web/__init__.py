"""`linkspan web`: a page that shows the network, live.

A process of the user's own serves the page. It asks the agent by its unix socket, as every command does, so it can
show what the user may read, and change nothing. The page is files in ``page``: modules and libraries as browsers load
them, so that an installation builds nothing and the page needs nothing from outside the machine.

**Who may see the page.** Every user of the machine can connect to its port, and so can every page in the browser of
the user. So a request must pass these checks (`access.py`):
- A session. The command prints a link with a token, which counts once and for 60 s, and becomes a cookie. The login
  answers with a page that goes on to ``/`` by itself: a redirect would count as the step of the page that the link was
  on, and with SameSite=Strict the browser would send no cookie with it.
- The session's own token, in a header of each question. Browsers send a cookie to all ports of a host, so other users'
  servers get it; its random name only keeps several pages apart. The login's page puts this token into localStorage,
  which browsers divide by the port as well. A session that a script began (the login did not ask for HTML) needs
  it for packets only: a script decides itself where it sends its cookie.
- The header Host names an address where this process listens. A foreign page whose name was made to lead to this
  machine (DNS rebinding) has another one.
- Origin and Sec-Fetch-Site, where a browser sends them, are this page's own.
- Every request is a GET, except those that send packets. Those need the session's token from scripts, too, and are
  limited in number (`pace.py`). The agent takes them from root only.

Connections on which no session asks are few, and closed after a while (`connections.py`): other users and machines can
open them without end. The browser is opened by a file of mode 0600 that leads to the link: other users can read a
command line.

**What the agent pays.** One request follows its events and one loop reads its state, whatever the number of viewers
(`feed.py`). If the state is read because time has passed, at most a hundredth of the time is spent on it. If it is read
because of an event, at most a tenth. Questions that several viewers ask at once are asked once (`shared_answers.py`).
Without viewers nothing is read.

**What a viewer gets.** First the whole state, then differences, at most four a second. Each viewer has a bounded queue.
A viewer that does not keep up loses the queue and gets the whole state again. The tabs of a browser share one stream by
a SharedWorker, because with HTTP/1.1 a browser has six connections to a host. A stream is read by fetch, because an
EventSource sends no header. A cluster may have 100,000 containers: if there are more than ``MOST`` (`view_state.py`),
the state has only their numbers, and the page asks for lists in parts.

**Which language.** The page has its own words in each. The agent speaks English, in finished sentences. In answers to
questions the server translates those that it knows (`answer_language.py`), because their catalogue would be a third of
what a browser loads. Problems are in the stream, which is the same for all viewers: so they have each language.

**What was rejected.** A page served by the agent would put a web server for browsers into a process that runs as root.
WebSockets have no advantage here, because the page has nothing to send. A framework with a build step would need npm
wherever the package is built.
"""
