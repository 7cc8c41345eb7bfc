"""What a host of the lab starts with: its boot script and the configuration of ssh on both ends."""

BOOT = """
hostname "$NAME"
mount --bind "$LAB/hosts" /etc/hosts
mount --bind "$LAB/ssh_config" /etc/ssh/ssh_config
if [ -d "$HOME/.ssh" ]; then mount -t tmpfs tmpfs "$HOME/.ssh"; fi  # no key or setting of the machine's own user
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$LAB/disk"
ip link set lo up
touch "$LAB/$NAME.up"
exec "$(command -v sshd)" -D -e -f "$LAB/sshd_config"
"""
"""The first process of a host, which becomes its sshd; that collects what dies on the host, as an init would."""

SSHD_CONFIG = """
HostKey {lab}/host_key
AuthorizedKeysFile {lab}/user_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
LogLevel ERROR
"""

SSH_CONFIG = """
Host *
    IdentityFile {lab}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {lab}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    # without these two a command on a host that was cut off is waited for for ever
    ServerAliveInterval 2
    ServerAliveCountMax 3
"""
