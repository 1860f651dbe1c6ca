"""How fast it is: measurements that a user can repeat on his own machine and data. Nothing else imports this."""
