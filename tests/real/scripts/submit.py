"""Talks to a relay with smtplib. Usage: submit.py HOST PORT CASE. Prints what came of it, one line a fact."""
import smtplib
import sys

host, port, case = sys.argv[1], int(sys.argv[2]), sys.argv[3]
smtp = smtplib.SMTP(host, port, local_hostname="python.test", timeout=60)
smtp.ehlo()
HEAD = b"From: me@sender.test\r\nSubject: " + case.encode() + b"\r\n\r\n"


def send(to, content, options=()):
    try:
        refused = smtp.sendmail("me@sender.test", to, HEAD + content, mail_options=list(options))
        print("sent, refused:", sorted(refused.items()))
    except smtplib.SMTPResponseException as error:
        print(type(error).__name__, error.smtp_code, error.smtp_error)


def raw(content):
    """Content as it is, bare line ends and all; smtplib would mend them."""
    smtp.mail("me@sender.test")
    smtp.rcpt("you@x.test")
    print("data", smtp.docmd("DATA")[0])
    smtp.send(content)
    print("answer", smtp.getreply())


if case == "features":
    print(sorted(smtp.esmtp_features.items()))
elif case == "eight-bit":
    send("you@x.test", "Grüße, 信, 🐎\r\n".encode(), ["BODY=8BITMIME"])
elif case == "many":
    send(["r%d@d%d.test" % (n, n % 7) for n in range(60)], b"to many\r\n")
elif case == "dots":
    send("you@x.test", b".\r\n..\r\n...\r\n.text\r\n\r\n.\r\n")
elif case == "size":
    send("you@x.test", b"x" * 70 + b"\r\n" * 100000)
    send("you@x.test", b"small enough\r\n")
elif case == "bare-lf":
    raw(HEAD + b"line\nwith a bare LF\r\n.\r\n")
    smtp.close()  # the relay may have hung up: what follows a smuggler's message is not to be trusted
    smtp.connect(host, port)
    smtp.ehlo()
    send("you@x.test", b"and on it goes\r\n")
elif case == "several":
    for number in range(25):
        send("r%d@x.test" % number, b"number %d\r\n" % number)
elif case == "verbs":
    print(smtp.docmd("VRFY", "someone")[0], smtp.docmd("HELP")[0], smtp.rset()[0], smtp.noop()[0])
else:
    sys.exit("no such case")
print("quit", smtp.quit()[0])
